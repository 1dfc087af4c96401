"""Coroutines run to their end from code that is not asynchronous, in a notebook too."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Value = TypeVar("Value")


def run(coroutine: Coroutine[Any, Any, Value]) -> Value:
    """What ``asyncio.run`` returns, also in a thread whose event loop runs already.

    A notebook's cells run on such a loop, where ``asyncio.run`` raises an error. The coroutine then
    gets a loop in another thread, with this thread's context variables, and this thread waits for it.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1, thread_name_prefix="limrank-loop") as pool:
        return pool.submit(contextvars.copy_context().run, asyncio.run, coroutine).result()

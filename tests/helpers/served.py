"""The API on a real socket, in a thread."""

import threading
import time
from contextlib import contextmanager

import uvicorn


@contextmanager
def serving_api(api):
    """The URL of an ASGI application while the block runs."""
    server = uvicorn.Server(uvicorn.Config(api, port=0, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True  # a request may be held for ever
        thread.join()

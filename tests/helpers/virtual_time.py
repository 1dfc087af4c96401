"""An event loop whose clock jumps: a sleep takes no time, and a machine under load changes no order."""

import asyncio


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Runs coroutines that wait for timers and for each other, and for nothing outside of the loop."""

    def __init__(self):
        super().__init__()
        self._now = 0.0
        select = self._selector.select

        def jump(timeout=None):
            if timeout:
                self._now += timeout
                timeout = 0
            return select(timeout)

        self._selector.select = jump

    def time(self):
        return self._now


def run(coroutine):
    """What a coroutine returns, in virtual time from 0."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(coroutine)

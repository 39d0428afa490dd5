"""Ctrl-C, SIGTERM and SIGHUP raise Interrupted wherever the program is, also in a coroutine or a destructor.

A signal that was ignored when the program began (nohup, a job in the background) stays ignored.
"""

import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from orchestrator.errors import Interrupted

T = TypeVar("T")
Handler = Callable[[int, FrameType | None], Any]

AGAIN_S = 0.05


class _Signalled(Interrupted):
    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


def raise_interrupted(*numbers: int) -> list[Interrupted]:
    """Have these signals raise Interrupted in the main thread; what was raised so far, in a list that grows.

    Python drops what is raised in a destructor or a weak reference's callback: the signal is sent again there.
    """
    received: list[Interrupted] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(_Signalled(number))
        raise received[-1]

    def send_again(unraisable: "sys.UnraisableHookArgs") -> None:
        error = unraisable.exc_value
        if not isinstance(error, _Signalled):
            before(unraisable)
            return
        main = threading.main_thread().ident
        timer = threading.Timer(AGAIN_S, signal.pthread_kill, (main, error.number))
        timer.daemon = True
        timer.start()

    before, sys.unraisablehook = sys.unraisablehook, send_again
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    return received


@contextmanager
def defer_signals() -> Iterator[None]:
    """A signal that comes within the block is raised at its end: a child that was just started is known by then.

    For blocks that end by themselves at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = _raising_handlers()
    received: list[int] = []
    try:
        for number in handlers:
            signal.signal(number, lambda number, frame: received.append(number))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if received:
            handlers[received[0]](received[0], None)


def run_interruptible(coroutine: Coroutine[Any, Any, T]) -> T:
    """asyncio.run, for a program whose signal handlers raise.

    Raised while the event loop runs, it would be a task's own failure, or a callback's, which is logged and lost. So a
    signal cancels the coroutine instead, and its handler is called when the loop is closed; a second one reaches it at
    once. Raises Interrupted: a signal came, and its handler raised nothing.
    """
    import asyncio  # here, since every command starts with this module, and few have a loop

    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        return asyncio.run(coroutine)
    handlers = _raising_handlers()
    received: list[int] = []
    task: asyncio.Task[Any] | None = None

    def cancel(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            handlers[number](number, frame)
        elif task is not None and not task.done():
            task.cancel()
            task.get_loop().call_soon_threadsafe(lambda: None)  # wakes select(), as asyncio's own handler does

    async def main() -> T:
        nonlocal task
        task = asyncio.current_task()
        if received:
            raise asyncio.CancelledError
        return await coroutine

    try:
        for number in handlers:
            signal.signal(number, cancel)
        return asyncio.run(main())
    finally:
        coroutine.close()  # nothing to do, unless it never started
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if received:  # what is raised here takes the place of CancelledError
            handlers[received[0]](received[0], None)
            raise Interrupted(f"stopped by {signal.Signals(received[0]).name}")


def _raising_handlers() -> dict[int, Handler]:
    """The handlers of the signals that end a program, where they are Python's: not SIG_DFL and SIG_IGN."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return {number: handler for number in signals if callable(handler := signal.getsignal(number))}

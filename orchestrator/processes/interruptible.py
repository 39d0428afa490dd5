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


class _Signalled(Interrupted):
    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


def raise_interrupted(*numbers: int) -> None:
    """Have these signals raise Interrupted in the main thread."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise _Signalled(number)

    # Python drops what is raised in a destructor or a weak reference's callback
    def send_again(unraisable: "sys.UnraisableHookArgs") -> None:
        error = unraisable.exc_value
        if not isinstance(error, _Signalled):
            before(unraisable)
            return
        main = threading.main_thread().ident
        timer = threading.Timer(0.05, signal.pthread_kill, (main, error.number))
        timer.daemon = True
        timer.start()

    before, sys.unraisablehook = sys.unraisablehook, send_again
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)


@contextmanager
def defer_signals() -> Iterator[None]:
    """Raise a signal of the block, a short one, at its end: a child that was started in it is known by then."""
    received: list[int] = []
    with _handled(lambda number, frame: received.append(number), received):
        yield


def run_interruptible(coroutine: Coroutine[Any, Any, T]) -> T:
    """asyncio.run, for a program whose signal handlers raise.

    Raised while the event loop runs, it would be a task's own failure, or a callback's, which is logged and lost. So a
    signal cancels the coroutine instead, and its handler is called when the loop is closed; a second one reaches it at
    once. Raises Interrupted: a signal came, and its handler raised nothing.
    """
    import asyncio  # here, since every command starts with this module, and few have a loop

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
        with _handled(cancel, received) as handlers:
            return asyncio.run(main())
    except asyncio.CancelledError:
        if received:
            raise Interrupted(f"stopped by {signal.Signals(received[0]).name}") from None
        raise
    finally:
        coroutine.close()  # nothing to do, unless it never started


@contextmanager
def _handled(handler: Handler, received: list[int]) -> Iterator[dict[int, Handler]]:
    """Another handler within the block, at whose end the usual one is called of the first signal that was received."""
    in_main = threading.current_thread() is threading.main_thread()  # signals are the main thread's
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if in_main else ()
    # where it is Python's: not SIG_DFL and SIG_IGN
    handlers: dict[int, Handler] = {each: usual for each in signals if callable(usual := signal.getsignal(each))}
    try:
        for number in handlers:
            signal.signal(number, handler)
        yield handlers
    finally:
        for number, usual in handlers.items():
            signal.signal(number, usual)
        if received:
            handlers[received[0]](received[0], None)

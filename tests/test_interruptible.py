"""Signals while a coroutine runs, in blocks that must not be cut, and in destructors."""

import asyncio
import os
import signal
import sys
import time
import weakref

import pytest

from orchestrator.errors import Interrupted
from orchestrator.processes.interruptible import defer_signals, raise_interrupted, run_interruptible


@pytest.fixture(autouse=True)
def handlers():
    def stop(number, frame):
        raise Interrupted(f"signal {number}")

    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    hook = sys.unraisablehook
    signal.signal(signal.SIGTERM, stop)
    yield
    sys.unraisablehook = hook
    for number, handler in kept.items():
        signal.signal(number, handler)


def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)
    sum(range(1000))  # here it is raised


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGTERM, Interrupted), (signal.SIGINT, KeyboardInterrupt)])
@pytest.mark.parametrize("where", ["callback", "task", "swallowing task", "select"])
def test_a_signal_cleans_up_then_raises_what_its_handler_raises(number, raised, where):
    """Wherever the loop was: in a callback asyncio itself would log it and go on."""
    cleaned = []

    async def other():
        try:
            if where == "task":
                send(number)
            if where == "swallowing task":
                try:
                    send(number)
                except Exception:
                    cleaned.append("swallowed")
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            cleaned.append("other")

    async def main():
        loop = asyncio.get_running_loop()
        if where == "callback":
            loop.call_later(0.05, os.kill, os.getpid(), number)
        if where == "select":
            loop.run_in_executor(None, lambda: os.kill(os.getpid(), number))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(other())
        finally:
            cleaned.append("main")

    with pytest.raises(raised):
        run_interruptible(main())
    assert cleaned == ["other", "main"]


@pytest.mark.parametrize("raises", [True, False])
def test_a_signal_that_comes_as_all_is_done_or_whose_handler_raises_nothing_ends_it(raises):
    before = signal.getsignal(signal.SIGTERM) if raises else signal.signal(signal.SIGTERM, lambda *_: None)

    async def main():
        send()
        await asyncio.sleep(0 if raises else 60)

    with pytest.raises(Interrupted, match="signal 15" if raises else "stopped by SIGTERM"):
        run_interruptible(main())
    assert not raises or signal.getsignal(signal.SIGTERM) == before


def test_the_second_signal_does_not_wait_for_the_cleaning_up():
    async def main():
        try:
            send()
            await asyncio.sleep(60)
        finally:
            asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGINT)
            await asyncio.sleep(60)

    with pytest.raises((Interrupted, KeyboardInterrupt)):
        run_interruptible(main())


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGTERM, Interrupted), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_within_a_block_that_must_not_be_cut_is_heard_at_its_end(number, raised):
    done = []
    with pytest.raises(raised):
        with defer_signals():
            send(number)
            done.append("the block")
        done.append("what follows")
    with pytest.raises(raised):
        send(number)  # and afterwards at once, as before
    assert done == ["the block"]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_is_ignored_stays_ignored(number):
    signal.signal(number, signal.SIG_IGN)
    raise_interrupted(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    with defer_signals():
        send(number)
    assert signal.getsignal(number) is signal.SIG_IGN


class _Signals:
    def __del__(self):
        send(signal.SIGINT)  # Python drops what is raised here


@pytest.mark.parametrize("where", ["destructor", "weak reference"])
def test_a_signal_that_python_drops_is_heard_a_moment_later(where):
    """Where a program goes on after "Exception ignored in"."""
    raise_interrupted(signal.SIGINT)
    thing = _Signals() if where == "destructor" else type("Thing", (), {})()
    reference = weakref.ref(thing, lambda _: send(signal.SIGINT)) if where == "weak reference" else None
    done = []
    with pytest.raises(Interrupted, match="stopped by SIGINT"):
        del thing
        done.append("went on")
        time.sleep(60)
    assert done == ["went on"] and (reference is None or reference() is None)

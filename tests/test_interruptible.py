"""Signals while a coroutine runs. Run: pytest tests/test_interruptible.py."""

import asyncio
import logging
import os
import signal
import sys
import time
import weakref

import pytest

from orchestrator import __main__ as main_module
from orchestrator.errors import Interrupted
from orchestrator.processes.interruptible import defer_signals, raise_interrupted, run_interruptible


@pytest.fixture(autouse=True)
def handlers():
    def stop(number, frame):
        raise Interrupted(f"signal {number}")

    before = signal.signal(signal.SIGTERM, stop), signal.getsignal(signal.SIGINT)
    hook = sys.unraisablehook
    yield
    sys.unraisablehook = hook
    signal.signal(signal.SIGTERM, before[0])
    signal.signal(signal.SIGINT, before[1])


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGTERM, Interrupted), (signal.SIGINT, KeyboardInterrupt)])
@pytest.mark.parametrize("where", ["callback", "task", "swallowing task", "select"])
def test_a_signal_cleans_up_then_raises_what_its_handler_raises(number, raised, where):
    """Wherever the loop was: in a callback asyncio itself would log it and go on."""
    cleaned = []

    async def other():
        try:
            if where == "task":
                os.kill(os.getpid(), number)
            if where == "swallowing task":
                try:
                    os.kill(os.getpid(), number)
                    sum(range(1000))
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


def test_a_signal_that_comes_as_all_is_done_is_not_lost():
    async def main():
        os.kill(os.getpid(), signal.SIGTERM)
        return 1

    with pytest.raises(Interrupted, match="signal 15"):
        run_interruptible(main())


def test_a_handler_that_raises_nothing_still_ends_it():
    seen = []
    signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))

    async def main():
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(60)

    with pytest.raises(Interrupted, match="stopped by SIGTERM"):
        run_interruptible(main())
    assert seen == [signal.SIGTERM]


def test_the_handlers_are_back_afterwards():
    before = signal.getsignal(signal.SIGTERM)

    async def main():
        assert signal.getsignal(signal.SIGTERM) != before
        return 7

    assert run_interruptible(main()) == 7 and signal.getsignal(signal.SIGTERM) == before


def test_the_second_signal_does_not_wait_for_the_cleaning_up():
    async def main():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
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
            os.kill(os.getpid(), number)
            done.append("the whole block")
        done.append("what follows")
    assert done == ["the whole block"]
    with pytest.raises(raised):
        os.kill(os.getpid(), number)  # and afterwards at once, as before
        done.append("what follows")
    assert done == ["the whole block"]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_is_ignored_stays_ignored(number):
    """By nohup; SIGINT by a shell, of a job in the background."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        raise_interrupted(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        with defer_signals():
            os.kill(os.getpid(), number)
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


class _Signals:
    def __del__(self):
        _signal()


def _signal(*_):
    os.kill(os.getpid(), signal.SIGINT)
    sum(range(1000))  # here it is raised, and Python drops it


@pytest.mark.parametrize("where", ["destructor", "weak reference"])
def test_a_signal_that_python_drops_is_heard_a_moment_later(where):
    """Where a program goes on after "Exception ignored in"."""
    raise_interrupted(signal.SIGINT)
    thing = _Signals() if where == "destructor" else type("Thing", (), {})()
    reference = weakref.ref(thing, _signal) if where == "weak reference" else None
    done = []
    with pytest.raises(Interrupted, match="stopped by SIGINT"):
        del thing
        done.append("went on")
        time.sleep(60)
    assert done == ["went on"] and (reference is None or reference() is None)


@pytest.mark.parametrize(("keeps_context", "said"), [(False, "error: stopped by SIGINT\n"), (True, None)])
def test_an_error_that_a_library_makes_of_a_signal_is_no_bug_and_one_of_the_cleaning_up_is(
    monkeypatch, capsys, keeps_context, said
):
    def command():
        try:
            _signal()
        except Interrupted:
            if keeps_context:
                raise ValueError("of the cleaning up") from None
        raise ValueError("of a library that is not Python's")

    monkeypatch.setattr(main_module, "app", command)
    monkeypatch.setattr(main_module, "_prepare_streams", lambda: None)
    monkeypatch.setattr(logging.getLogger("orchestrator"), "setLevel", lambda level: None)
    monkeypatch.setattr(logging, "basicConfig", lambda **settings: None)
    hangup = signal.getsignal(signal.SIGHUP)
    try:
        with pytest.raises(SystemExit if said else ValueError) as error:
            main_module.main()
    finally:
        signal.signal(signal.SIGHUP, hangup)
    if said:
        assert (error.value.code, capsys.readouterr().err) == (130, said)

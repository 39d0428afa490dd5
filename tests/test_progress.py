"""What a long stage shows. Run: pytest tests/test_progress.py."""

import io

import pytest

from orchestrator.processes.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_where_there_is_no_terminal_a_plain_line_comes_at_most_every_15_s_and_at_the_end():
    stream, clock = io.StringIO(), Clock()
    with Progress(40, "translate", "sentences", stream=stream, clock=clock) as progress:
        for _ in range(40):
            clock.now_s += 1
            progress.update(failed=2)
    assert stream.getvalue() == (
        "translate: 15/40 sentences in 15 s, 1/s, failed 2\n"
        "translate: 30/40 sentences in 30 s, 1/s, failed 2\n"
        "translate: 40/40 sentences in 40 s, 1/s, failed 2\n"
    )


def test_what_takes_long_is_shown_by_the_time_that_each_takes_and_nothing_has_no_rate():
    stream, clock = io.StringIO(), Clock()
    with Progress(4, "sweep", "runs", initial=1, stream=stream, clock=clock) as progress:
        clock.now_s += 20
        progress.update(0)
        clock.now_s += 40
        progress.update()
    assert stream.getvalue().splitlines()[:2] == ["sweep: 1/4 runs in 20 s", "sweep: 2/4 runs in 60 s, 60 s each"]


def test_the_last_line_comes_once_and_also_on_an_error():
    stream = io.StringIO()
    progress = Progress(None, "train", "steps", stream=stream, clock=Clock())
    try:
        with progress:
            progress.update(3)
            raise ValueError
    except ValueError:
        progress.close()
    assert stream.getvalue() == "train: 3 steps in 0 s\n"


def test_on_a_terminal_it_is_a_bar():
    stream = Terminal()
    with Progress(None, "train", "steps", stream=stream) as progress:
        progress.total = 4
        progress.update(4, loss="0.5")
    assert "train: 100%" in stream.getvalue()
    assert "4/4" in stream.getvalue()
    assert "loss=0.5" in stream.getvalue()
    assert progress.count == progress.total == 4


class Dead(io.StringIO):
    """Nobody reads it any more."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.isatty = lambda: is_terminal

    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize("is_terminal", [True, False])
def test_where_nobody_reads_it_the_stage_goes_on_quietly(is_terminal):
    clock = Clock()
    with Progress(40, "train", "steps", stream=Dead(is_terminal), clock=clock) as progress:
        for _ in range(3):
            clock.now_s += 20
            progress.update(loss="0.5")
        progress.total = 50
    assert progress.count == 3

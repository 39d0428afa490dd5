"""What a long stage shows. Run: pytest tests/test_progress.py."""

import io

import pytest

from orchestrator.processes.progress import Progress


class Stream(io.StringIO):
    """A file, a terminal, or either that nobody reads any more."""

    def __init__(self, is_terminal: bool = False, is_read: bool = True) -> None:
        super().__init__()
        self.isatty = lambda: is_terminal
        self.is_read = is_read

    def write(self, text: str) -> int:
        if not self.is_read:
            raise BrokenPipeError
        return super().write(text)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_without_a_terminal_a_plain_line_comes_at_most_every_15_s_and_once_at_the_end_also_on_an_error():
    stream, clock = Stream(), Clock()
    with pytest.raises(ValueError), Progress(40, "sweep", "runs", initial=10, stream=stream, clock=clock) as progress:
        for _ in range(20):
            clock.now_s += 1
            progress.update(failed=2)
        raise ValueError
    progress.close()
    lines = ["25/40 runs in 15 s, 1/s, failed 2", "30/40 runs in 20 s, 1/s, failed 2"]
    assert stream.getvalue().splitlines() == [f"sweep: {line}" for line in lines]


def test_on_a_terminal_it_is_a_bar():
    stream = Stream(is_terminal=True)
    with Progress(None, "train", "steps", stream=stream) as progress:
        progress.total = 4
        progress.update(4, loss="0.5")
    assert all(text in stream.getvalue() for text in ("train: 100%", "4/4", "loss=0.5"))


@pytest.mark.parametrize("is_terminal", [True, False])
def test_where_nobody_reads_it_the_stage_continues_quietly(is_terminal):
    clock = Clock()
    with Progress(40, "train", "steps", stream=Stream(is_terminal, is_read=False), clock=clock) as progress:
        clock.now_s += 20
        progress.update(loss="0.5")
    assert progress.count == 1

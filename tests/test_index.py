"""Remembered rows: never a hindrance, whatever became of their file. Run: pytest tests/test_index.py."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.runs.index import Index

ROWS = {"a": ("1 2", ("done", 1.5, None)), "b": ("3 4", ("failed", 2.5, 7))}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "it's a cache?#"


def index(cache: Path, version: int = 7, runs: str = "/w/runs") -> Index:
    return Index(cache, Path(runs), version, 3)


def keep(cache: Path, rows=ROWS, gone=(), **changes) -> None:
    made = index(cache, **changes)
    made.read()
    made.write(rows, gone)


def test_what_was_kept_is_read_by_the_next(cache):
    keep(cache)
    keep(cache, {"b": ("5 6", ("done", 3.5, None)), "c": ("0", ("done", 0.0, None))}, ["a"])
    assert index(cache).read() == {"b": ("5 6", ("done", 3.5, None)), "c": ("0", ("done", 0.0, None))}


def test_nothing_kept_is_nothing_read_and_nothing_made(cache):
    assert index(cache).read() == {}
    assert not cache.exists()


def test_each_folder_of_runs_has_its_own(cache):
    keep(cache)
    assert index(cache, runs="/other/runs").read() == {}


def test_rows_of_another_version_are_dropped(cache):
    keep(cache)
    assert index(cache, version=8).read() == {}
    keep(cache, {"c": ROWS["a"]}, version=8)
    assert index(cache, version=8).read() == {"c": ROWS["a"]}
    assert index(cache).read() == {}


def garbled(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    path.write_bytes(data)


def without_table(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("DROP TABLE runs")
    database.close()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"not a database, but some text that is long enough" * 100),
        lambda path: path.write_bytes(path.read_bytes()[:3000]),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
        garbled,
        without_table,
    ],
    ids=["text", "cut off", "empty", "deleted", "garbled", "no table"],
)
def test_a_damaged_file_is_made_anew_without_a_word(cache, damage):
    many = {f"run-{number}": ("1", ("done", 1.0, None)) for number in range(500)}
    keep(cache, many)
    damage(index(cache).path)
    again = index(cache)
    assert again.read() == {}
    again.write(ROWS, ())
    assert index(cache).read() == ROWS
    assert [path.name for path in index(cache).path.parent.iterdir()] == [index(cache).path.name]


def test_while_another_process_writes_the_rows_are_there_and_nothing_is_lost(cache):
    keep(cache)
    other = sqlite3.connect(index(cache).path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    keep(cache, {"c": ROWS["a"]})
    assert index(cache).read() == ROWS
    other.execute("ROLLBACK")
    other.close()
    keep(cache, {"c": ROWS["a"]})
    assert set(index(cache).read()) == {"a", "b", "c"}


def test_where_nothing_can_be_kept_nothing_happens(tmp_path):
    (tmp_path / "cache").write_text("a file, where the folder would be")
    keep(tmp_path / "cache")
    assert index(tmp_path / "cache").read() == {}


WRITER = """
import sys
from pathlib import Path
from orchestrator.runs.index import Index

for number in range(20):
    index = Index(Path(sys.argv[1]), Path("/w/runs"), 7, 1)
    index.read()
    index.write({f"{sys.argv[2]}-{number}": ("1", (number,))}, ())
"""


def test_two_processes_at_once_leave_a_whole_file(cache):
    under_way = [subprocess.Popen([sys.executable, "-c", WRITER, str(cache), name]) for name in "ab"]
    assert [process.wait(60) for process in under_way] == [0, 0]
    found = Index(cache, Path("/w/runs"), 7, 1).read()
    assert found and set(found) <= {f"{name}-{number}" for name in "ab" for number in range(20)}

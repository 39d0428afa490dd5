"""Files: written in one step, read within bounds, locked; text for people. Run: pytest tests/test_files.py."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from orchestrator.errors import PrerequisiteError
from orchestrator.files import (
    atomic_write,
    json_mapping,
    lock,
    read_file,
    read_json,
    sha256_file,
    sha256_json,
    try_lock,
)
from orchestrator.text import duration, escape_controls, size


@pytest.mark.parametrize("content", ["", "ä😀\r\n", b"\0\xff"])
def test_what_is_written_is_what_is_read(content, tmp_path):
    path = tmp_path / "file"
    atomic_write(path, "old")
    before = os.umask(0o027)
    atomic_write(path, content)
    os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640  # mkstemp's rights would keep a group out
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    atomic_write(path, "the old one")

    def fsync(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space") as error:
        atomic_write(path, "new")
    assert error.value.filename == str(path)
    assert path.read_text() == "the old one" and list(tmp_path.iterdir()) == [path]


def test_a_write_reaches_the_disk_before_the_name_and_the_folder_after_it(tmp_path, monkeypatch):
    calls: list[str] = []
    for owner, name in ((os, "fsync"), (Path, "replace")):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, n=name, o=original: (calls.append(n), o(*args))[1])
    atomic_write(tmp_path / "file", "x")
    assert calls == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"[" * 100_000, b"9" * 5000, b'{"a": ' * 100_000])
def test_rubbish_is_no_json_and_no_traceback(content, tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    assert json_mapping(path) is None
    with pytest.raises(PrerequisiteError, match=r"x\.json cannot be read: no JSON"):
        read_json(path)


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(FileNotFoundError):
        read_file(path)
    path.write_text('{"a": 1}')
    assert json_mapping(path) == read_json(path, max_bytes=8) == {"a": 1}
    with pytest.raises(PrerequisiteError, match="it has 8 bytes, over 7"):
        read_file(path, max_bytes=7)
    for make in (os.mkfifo, os.mkdir, lambda place: place.symlink_to(place)):
        path.unlink() if path.is_symlink() or path.exists() else None
        make(path)
        assert json_mapping(path) is None
        with pytest.raises(PrerequisiteError, match="cannot be read"):
            read_file(path)
        path.rmdir() if path.is_dir() else path.unlink()
    path.write_text("[1]")
    assert json_mapping(path) is None and json_mapping(tmp_path / "none") is None


def test_hashes_are_those_of_the_bytes_and_of_the_values(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_json({"a": 1, "b": 2}) == sha256_json({"b": 2, "a": 1}) != sha256_json({"a": 1, "b": 3})


def test_a_lock_excludes_until_its_last_holder_closes_it(tmp_path):
    path = tmp_path / ".lock"
    with path.open("a") as other:
        with lock(path):
            assert not try_lock(other.fileno())
        assert try_lock(other.fileno())
        kept = os.dup(other.fileno())
    with path.open("a") as another:
        assert not try_lock(another.fileno())
        os.close(kept)
        assert try_lock(another.fileno())


def test_a_disk_without_locks_is_refused_with_the_reason(tmp_path, monkeypatch):
    """An NFS mount whose server has no lock daemon."""

    def flock(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(PrerequisiteError, match=r"\.lock cannot be locked: No locks available\. Without") as error:
        with lock(tmp_path / ".lock"):
            pass
    assert "NFS" in error.value.remedy


@pytest.mark.parametrize(
    ("show", "shown"),
    [
        (escape_controls, {"ä 退\t\u200d\u00a0": "ä 退\t\u200d\u00a0", "\x1b[2J\n": "\\x1b[2J\\n"}),
        (escape_controls, {"\u202e": "\\u202e", "\U000e0001": "\\U000e0001"}),
        (duration, {0: "0.0 s", 9.94: "9.9 s", 59.4: "59 s", 59.6: "1 min 0 s", 186: "3 min 6 s"}),
        (duration, {3599.7: "1 h 0 min", 7500: "2 h 5 min", 360_000: "100 h 0 min"}),
        (size, {0: "0 bytes", 900: "900 bytes", 1 << 10: "1.0 KiB", 700 << 20: "700 MiB", 1000 << 20: "1.0 GiB"}),
        (size, {3 << 30: "3.0 GiB", 23_552 << 20: "23.0 GiB", 5 << 40: "5.0 TiB"}),
    ],
)
def test_control_characters_durations_and_sizes_are_readable(show, shown):
    assert {value: show(value) for value in shown} == shown

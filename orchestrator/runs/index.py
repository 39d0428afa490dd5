"""A memory of rows, so that a list of 10,000 runs reads 10,000 files only once: SQLite in the user's cache folder.

Covered: rows by run id, each with a stamp of the files that it was read from; made anew where it is of another version,
damaged or gone; several processes at once; a machine where it can't be kept, which is as fast as without.
Not covered: what the stamp and the row are (registry.py). Never the truth: whoever asks compares the stamps.
Leaves <cache>/index/<hash of the folder>.sqlite. Not in the workspace: that may be read-only, shared, or a stranger's.
"""

import contextlib
import hashlib
import os
import sqlite3
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

Stored = tuple[str, tuple[Any, ...]]
"""A stamp and a row."""

_TIMEOUT_S = 1.0  # another process writes: then this one's rows are kept the next time


class Index:
    """The rows of one folder of runs."""

    def __init__(self, cache: Path, runs: Path, version: int, columns: int) -> None:
        """Nothing is opened or made yet.

        Args:
            cache: the user's cache folder.
            runs: the folder that the rows are of.
            version: what the rows and stamps mean; those of another version are dropped.
            columns: how many values a row has.
        """
        name = hashlib.sha256(os.fsencode(runs)).hexdigest()[:16]
        self.path = cache / "index" / f"{name}.sqlite"
        self._version = version
        self._columns = columns
        self._is_outdated = False

    def read(self) -> dict[str, Stored]:
        """All rows by run id; none where the file is of another version, damaged or not there."""
        try:
            place = f"file:{quote(str(self.path))}?mode=ro"
            with contextlib.closing(sqlite3.connect(place, uri=True, timeout=_TIMEOUT_S)) as database:
                self._is_outdated = self._version_of(database) != self._version
                if self._is_outdated:
                    return {}
                return {row[0]: (row[1], row[2:]) for row in database.execute("SELECT * FROM runs")}
        except sqlite3.Error as error:
            self._is_outdated = self.path.exists() and error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY
            return {}

    def write(self, rows: Mapping[str, Stored], gone: Collection[str]) -> None:
        """Keep some rows and forget others, after read(); where that can't be done, nothing happens."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._is_outdated:
                self._replace(rows)
            else:
                self._write(self.path, rows, gone)
        except (sqlite3.OperationalError, OSError):  # locked, full, read-only: the list was right without
            return
        except sqlite3.DatabaseError:
            self._replace(rows)

    def _write(self, path: Path, rows: Mapping[str, Stored], gone: Collection[str]) -> None:
        with contextlib.closing(sqlite3.connect(path, timeout=_TIMEOUT_S, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            if self._version_of(database) != self._version:
                columns = ", ".join(f"v{number}" for number in range(self._columns))
                database.execute(f"CREATE TABLE runs (id TEXT PRIMARY KEY, stamp TEXT, {columns})")
                database.execute(f"PRAGMA user_version = {self._version:d}")
            marks = ", ".join("?" * (self._columns + 2))
            values = [(name, stamp, *row) for name, (stamp, row) in rows.items()]
            database.executemany(f"INSERT OR REPLACE INTO runs VALUES ({marks})", values)
            database.executemany("DELETE FROM runs WHERE id = ?", [(name,) for name in gone])
            database.execute("COMMIT")

    def _replace(self, rows: Mapping[str, Stored]) -> None:
        """A new file in the place of one of no use, which others may have open; no journal of that is left."""
        with contextlib.suppress(sqlite3.Error, OSError), tempfile.TemporaryDirectory(dir=self.path.parent) as folder:
            fresh = Path(folder) / "fresh.sqlite"
            self._write(fresh, rows, ())
            Path(f"{self.path}-journal").unlink(missing_ok=True)
            fresh.replace(self.path)

    def _version_of(self, database: sqlite3.Connection) -> int:
        return int(database.execute("PRAGMA user_version").fetchone()[0])

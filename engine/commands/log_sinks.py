"""What ``sagitta logs`` writes: a table to look at, or a file to work with.

Rules that hold here:
- A file is complete or not there: it is written beside its name and renamed at the end. A pipe or
  a device is no file: it is written to, and never replaced.
- What clients sent is shown on a terminal without the characters that steer one.
- A log may change its columns; JSON holds any, Arrow and Parquet files hold one kind each: rows of
  other columns go to ``name-2.parquet`` beside ``name.parquet``, and so on.
"""

from __future__ import annotations

import contextlib
import datetime
import sys
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa

from engine.codecs.pandas_records import write_batch_lines, write_batch_records
from engine.console import printable

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any, BinaryIO, Self

__all__ = ["FileSink", "JsonSink", "Sink", "TableSink"]


WAITING_BATCHES = 4  # of about 1 MB that are read and not written yet
GATHERED_BYTES = 1 << 20  # of a file, before they become a record batch or a row group of it
TEXT_ROWS = 1 << 12  # made into text at one time: it is many times as large as a batch
OPEN_FILES = 64  # at one time


class Sink(Protocol):
    """Takes rows of the log."""

    def write(self, batch: pa.RecordBatch) -> None:
        """Take some rows."""

    def close(self) -> list[str]:
        """Complete what was written; the names of the files."""

    def discard(self) -> None:
        """Remove what cannot be completed."""


class TableSink:
    """Prints one line per row: when, how many anomalies, what came out, what went in; or an error.

    Rows are told from failed requests by their columns.
    """

    def __init__(self, width: int) -> None:
        """Print lines of at most ``width`` characters."""
        self._width = width
        self._has_head = False

    def write(self, batch: pa.RecordBatch) -> None:
        """Print some rows."""
        is_failures = "error" in batch.schema.names
        if not self._has_head:
            self._has_head = True
            self._print("time", "error" if is_failures else _cells("anomaly", "out", "in"))
        for row in batch.to_pylist():
            moment = datetime.datetime.fromtimestamp(row["time"] / 1000, datetime.UTC)
            time = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
            self._print(time, row["error"] if is_failures else _inference(row))

    def _print(self, time: str, what: str) -> None:
        line = printable(f"{time:<24}  {what}").replace("\n", r"\n")
        text = line if len(line) <= self._width else f"{line[: self._width - 1]}…"
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    def close(self) -> list[str]:
        """Nothing is open."""
        return []

    def discard(self) -> None:
        """Nothing is kept."""


def _inference(row: dict[str, dict[str, Any]]) -> str:
    anomalies = [name for name, found in row["anomaly"].items() if found and name != "count"]
    count = row["anomaly"]["count"]
    named = f"{count} {','.join(anomalies)}".strip()
    return _cells(named if count else "-", _short(row["out"]), _short(row["in"]))


def _cells(anomaly: str, out: str, into: str) -> str:
    return f"{anomaly:<9}  {out:<32}  {into}"


def _short(columns: dict[str, object]) -> str:
    return " ".join(f"{name}={_value(value)}" for name, value in columns.items())


def _value(value: object) -> str:
    if isinstance(value, list):
        text = ",".join(_value(item) for item in value[:4])
        return f"[{text}{',…' if len(value) > 4 else ''}]"
    if isinstance(value, float):
        return f"{value:.7g}"
    text = str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


class JsonSink:
    """Writes pandas records: one array, or one object a line."""

    def __init__(self, file: BinaryIO, *, lines: bool, target: Path | None = None) -> None:
        """Write to an open file.

        Args:
            file: where to.
            lines: one object a line, each complete as soon as it is written.
            target: what to rename the file to at the end; None for standard output.
        """
        self._file = file
        self._lines = lines
        self._target = target
        self._rows = 0

    @classmethod
    def to_file(cls, target: Path, *, lines: bool) -> Self:
        """Write to a file of this name.

        Raises:
            OSError: it cannot be written.
        """
        return cls(_beside(target).open("wb"), lines=lines, target=target)

    def write(self, batch: pa.RecordBatch) -> None:
        """Write some rows."""
        for start in range(0, batch.num_rows, TEXT_ROWS):
            rows = batch.slice(start, TEXT_ROWS)
            if self._lines:
                self._file.write(write_batch_lines(rows))
            else:
                self._file.write(b"," if self._rows else b"[")
                self._file.write(memoryview(write_batch_records(rows))[1:-1])
            self._rows += rows.num_rows
        if self._target is None:
            self._file.flush()

    def close(self) -> list[str]:
        """Complete the text."""
        if not self._lines:
            self._file.write(b"]\n" if self._rows else b"[]\n")
        self._file.flush()
        if self._target is None:
            return []
        self._file.close()
        _beside(self._target).replace(self._target)
        return [str(self._target)]

    def discard(self) -> None:
        """Remove the file."""
        if self._target is not None:
            self._file.close()
            _remove(self._target)


class FileSink:
    """Writes Arrow IPC or Parquet files, one for each set of columns.

    Requests of two kinds often take turns: their rows come a few at a time, and are gathered to
    record batches and row groups of a size that is good to read. A thread of its own writes while
    the next rows are read: each takes about as long.
    """

    def __init__(self, target: Path, *, parquet: bool) -> None:
        """Write to ``target``, and to numbered files beside it for other columns than its own."""
        self._target = target
        self._parquet = parquet
        self._paths: list[Path] = []
        self._files: dict[bytes, _ColumnFile] = {}  # by schema, the longest unused one first
        self._thread = ThreadPoolExecutor(1, "log-file")
        self._waiting: deque[Future[None]] = deque()

    def write(self, batch: pa.RecordBatch) -> None:
        """Write some rows, sooner or later.

        Raises:
            OSError: these, or rows before them, cannot be written.
        """
        while len(self._waiting) >= WAITING_BATCHES:
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(self._write, batch))

    def _write(self, batch: pa.RecordBatch) -> None:
        key = batch.schema.serialize().to_pybytes()
        file = self._files.pop(key, None)
        if file is None:
            if len(self._files) >= OPEN_FILES:
                self._files.pop(next(iter(self._files))).close()
            file = self._begin(batch.schema)
        self._files[key] = file
        file.write(batch)

    def close(self) -> list[str]:
        """Complete the files."""
        while self._waiting:
            self._waiting.popleft().result()
        self._thread.shutdown()
        for file in self._files.values():
            file.close()
        for path in self._paths:
            _beside(path).replace(path)
        return [str(path) for path in self._paths]

    def discard(self) -> None:
        """Remove the files."""
        self._thread.shutdown(cancel_futures=True)
        for file in self._files.values():
            with contextlib.suppress(OSError):  # what it still holds may be what cannot be written
                file.close()
        for path in self._paths:
            _remove(path)

    def _begin(self, schema: pa.Schema) -> _ColumnFile:
        number = len(self._paths) + 1
        name = self._target.stem if number == 1 else f"{self._target.stem}-{number}"
        path = self._target.with_name(name + self._target.suffix)
        self._paths.append(path)
        return _ColumnFile(_beside(path), schema, parquet=self._parquet)


class _ColumnFile:
    """A file that is being written, and rows on their way into it."""

    def __init__(self, path: Path, schema: pa.Schema, *, parquet: bool) -> None:
        """Begin a file of Parquet or Arrow."""
        self._writer: Any
        if parquet:
            import pyarrow.parquet as pq  # noqa: PLC0415 - 50 ms that only this pays

            self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        else:
            self._writer = pa.ipc.new_file(str(path), schema)
        self._rows: list[pa.RecordBatch] = []
        self._bytes = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Gather some rows, and write them once they are many."""
        self._rows.append(batch)
        self._bytes += batch.nbytes
        if self._bytes >= GATHERED_BYTES:
            self._flush()

    def close(self) -> None:
        """Write what is left, and the file's end."""
        try:
            self._flush()
        finally:
            self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            table = pa.Table.from_batches(self._rows).combine_chunks()
            self._rows, self._bytes = [], 0
            self._writer.write_table(table)


def _beside(path: Path) -> Path:
    """What is written until it is complete."""
    is_special = path.exists() and not path.is_file()
    return path if is_special else path.with_name(f".{path.name}.part")


def _remove(path: Path) -> None:
    if _beside(path) != path:
        _beside(path).unlink(missing_ok=True)

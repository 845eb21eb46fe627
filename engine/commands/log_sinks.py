"""What ``sagitta logs`` writes: a table to look at, or a file to work with.

Rules that hold here:
- A file is complete or not there: it is written beside its name and renamed at the end. A pipe or
  a device is no file: it is written to, and never replaced.
- What clients sent is shown on a terminal without the characters that steer one.
- A log may change its columns; JSON holds any, Arrow and Parquet files hold one kind each: where
  the columns change a next file is begun, ``name-2.parquet`` behind ``name.parquet``.
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


class Sink(Protocol):
    """Takes rows of the log."""

    def write(self, batch: pa.RecordBatch) -> None:
        """Take some rows."""

    def close(self) -> list[str]:
        """Complete what was written; the names of the files."""

    def discard(self) -> None:
        """Remove what cannot be completed."""


class TableSink:
    """Prints one line per row: when, what went in, what came out, how many anomalies, the model."""

    def __init__(self, width: int) -> None:
        """Print lines of at most ``width`` characters."""
        self._width = width
        self._has_head = False

    def write(self, batch: pa.RecordBatch) -> None:
        """Print some rows."""
        if not self._has_head:
            self._has_head = True
            self._print("time", "anomaly", "out", "in")
        for row in batch.to_pylist():
            moment = datetime.datetime.fromtimestamp(row["time"] / 1000, datetime.UTC)
            time = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
            anomalies = [
                name for name, found in row["anomaly"].items() if found and name != "count"
            ]
            count = row["anomaly"]["count"]
            named = f"{count} {','.join(anomalies)}".strip()
            self._print(time, named if count else "-", _short(row["out"]), _short(row["in"]))

    def _print(self, time: str, anomaly: str, out: str, into: str) -> None:
        line = printable(f"{time:<24}  {anomaly:<9}  {out:<32}  {into}").replace("\n", r"\n")
        text = line if len(line) <= self._width else f"{line[: self._width - 1]}…"
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    def close(self) -> list[str]:
        """Nothing is open."""
        return []

    def discard(self) -> None:
        """Nothing is kept."""


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
        if self._lines:
            self._file.write(write_batch_lines(batch))
        else:
            self._file.write((b"," if self._rows else b"[") + write_batch_records(batch)[1:-1])
        self._rows += batch.num_rows
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
    """Writes Arrow IPC or Parquet files, one for each run of rows with the same columns.

    A thread of its own writes while the next rows are read: each takes about as long.
    """

    def __init__(self, target: Path, *, parquet: bool) -> None:
        """Write to ``target``, and to numbered files beside it where the columns change."""
        self._target = target
        self._parquet = parquet
        self._paths: list[Path] = []
        self._schema: pa.Schema | None = None
        self._writer: Any = None
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
        if self._schema is None or not self._schema.equals(batch.schema, check_metadata=True):
            self._begin(batch.schema)
        self._writer.write_batch(batch)

    def close(self) -> list[str]:
        """Complete the files."""
        while self._waiting:
            self._waiting.popleft().result()
        self._thread.shutdown()
        if self._writer is not None:
            self._writer.close()
        for path in self._paths:
            _beside(path).replace(path)
        return [str(path) for path in self._paths]

    def discard(self) -> None:
        """Remove the files."""
        self._thread.shutdown(cancel_futures=True)
        with contextlib.suppress(OSError):  # what it still holds may be what cannot be written
            if self._writer is not None:
                self._writer.close()
        for path in self._paths:
            _remove(path)

    def _begin(self, schema: pa.Schema) -> None:
        if self._writer is not None:
            self._writer.close()
        number = len(self._paths) + 1
        name = self._target.stem if number == 1 else f"{self._target.stem}-{number}"
        path = self._target.with_name(name + self._target.suffix)
        self._paths.append(path)
        self._schema = schema
        if self._parquet:
            import pyarrow.parquet as pq  # noqa: PLC0415 - 50 ms that only this pays

            self._writer = pq.ParquetWriter(_beside(path), schema, compression="zstd")
        else:
            self._writer = pa.ipc.new_file(str(_beside(path)), schema)


def _beside(path: Path) -> Path:
    """What is written until it is complete."""
    is_special = path.exists() and not path.is_file()
    return path if is_special else path.with_name(f".{path.name}.part")


def _remove(path: Path) -> None:
    if _beside(path) != path:
        _beside(path).unlink(missing_ok=True)

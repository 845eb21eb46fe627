"""``sagitta logs``: look at the inference log, follow it, or take it along as a file."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import re
import shutil
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from engine.commands.log_sinks import FileSink, JsonSink, Sink, TableSink
from engine.commands.log_sources import EngineSource, LogSource, open_folder
from engine.errors import ConfigError, StartupError
from engine.logring import PageQuery, read_batches

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["run"]

FORMATS = ("table", "json", "jsonl", "arrow", "parquet")
TABLE_ROWS = 20
SEARCH_ROWS = 10_000  # of a page, where only some of its rows are wanted
FOLLOW_S = 1.0
FOREVER_MS = 253_402_300_799_999  # the last moment of the year 9999
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
EPILOG = """examples:
  sagitta logs                                     the newest rows of http://localhost:8080
  sagitta logs http://edge:8080 --follow           and whatever comes
  sagitta logs /persist -o logs.parquet            all that a stopped engine has kept
  sagitta logs --since 2h --anomalies-only -f json the last two hours' anomalies, for a program
  sagitta logs --failures                          requests that the model failed on
"""


def run(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run the command.

    Args:
        arguments: of the command line.
        environ: the environment; ``PERSIST_DIR`` is not looked at, the engine may be running.

    Returns:
        The exit code.

    Raises:
        ConfigError: the command line is wrong.
        StartupError: the log cannot be read or written.
    """
    del environ
    options = _parser().parse_args(arguments)
    form = _format(options)
    query = _query(options)
    with _source(options) as source, _explained():
        sink = _sink(form, options)
        copy = _Copy(source, sink, options.anomalies_only, is_watched=_is_watched(form, options))
        try:
            is_newest = form == "table" or (options.follow and options.rows is not None)
            if is_newest and query.time_range_ms is None:
                copy.newest(options.rows or TABLE_ROWS)
            else:
                copy.all(query, options.rows)
            with contextlib.suppress(KeyboardInterrupt):  # which is how following ends
                while options.follow:
                    time.sleep(FOLLOW_S)
                    copy.all(dataclasses.replace(query, start_row=copy.next_row), None)
            copy.finish()
        except BaseException:
            sink.discard()
            raise
    return 0


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """What the disk does as a StartupError; a reader that goes away is the command's own end."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StartupError(f"cannot write: {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sagitta logs",
        description="Read the inference log of a running engine, or of a stopped one's folder.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("source", nargs="?", default="http://localhost:8080", help="URL of an engine, or a folder")
    add("-f", "--format", choices=FORMATS, help="default: by the output's ending, else table")
    add("-o", "--output", type=Path, help="file to write; without it, standard output")
    newest = f"without --since, a table ({TABLE_ROWS}) and --follow have the newest"
    add("-n", "--rows", type=int, help=f"at most so many rows; {newest}")
    add("--since", help="only rows from then on: 15m, 2h, 7d, or 2026-01-31T12:00:00Z")
    add("--until", help="only rows up to then, written as --since")
    add("--anomalies-only", action="store_true", help="only rows with an anomaly")
    add("--failures", action="store_true", help="failed requests in place of rows")
    add("--follow", action="store_true", help="go on with the rows that come")
    add("--token-file", type=Path, help="file with a bearer token for the engine")
    add("--ca-file", type=Path, help="PEM certificates to trust for https")
    return parser


def _format(options: argparse.Namespace) -> str:
    ending = options.output.suffix.lstrip(".") if options.output else ""
    form: str = options.format or (ending if ending in FORMATS else "table")
    if form in {"arrow", "parquet"} and options.output is None:
        raise ConfigError(f"--format {form} needs a file: add --output logs.{form}")
    if form == "table" and options.output is not None:
        endings = ", ".join(f".{name}" for name in FORMATS if name != "table")
        raise ConfigError(f"--output needs a --format, or a name that ends in {endings}")
    if options.follow and (options.output is not None or form == "json"):
        raise ConfigError("--follow goes with --format table or jsonl, to standard output")
    if options.follow and options.until is not None:
        raise ConfigError("--follow has no end: leave --until out")
    if options.follow and options.since is not None and options.rows is not None:
        raise ConfigError("--follow takes --since or --rows, not both")
    if options.failures and options.anomalies_only:
        raise ConfigError("--anomalies-only is about rows: leave it out with --failures")
    if options.rows is not None and options.rows < 1:
        raise ConfigError("--rows takes a number of 1 or more")
    return form


def _query(options: argparse.Namespace) -> PageQuery:
    if options.since is None and options.until is None:
        return PageQuery()
    since_ms = 0 if options.since is None else _moment_ms(options.since)
    until_ms = FOREVER_MS if options.until is None else _moment_ms(options.until)
    if since_ms > until_ms:
        raise ConfigError(f"--since {options.since} is later than --until {options.until}")
    return PageQuery(time_range_ms=(since_ms, until_ms))


def _moment_ms(text: str) -> int:
    ago = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if ago:
        return max(int((time.time() - int(ago[1]) * UNITS_S[ago[2]]) * 1000), 0)
    try:
        return max(int(datetime.fromisoformat(text).astimezone().timestamp() * 1000), 0)
    except (ValueError, OverflowError) as error:
        raise ConfigError(
            f"{text!r} is no moment: write 15m, 2h, 7d, or 2026-01-31T12:00:00Z"
        ) from error


@contextlib.contextmanager
def _source(options: argparse.Namespace) -> Iterator[LogSource]:
    if "://" not in options.source:
        if options.follow:
            raise ConfigError("--follow needs a running engine: give its URL instead of a folder")
        with open_folder(Path(options.source), failures=options.failures) as source:
            yield source
        return
    token = None
    if options.token_file is not None:
        try:
            token = options.token_file.read_bytes().split(b"\n")[0].strip().decode("latin-1")
        except OSError as error:
            raise ConfigError(f"--token-file {options.token_file}: {error.strerror}") from error
        if not token.isprintable():
            raise ConfigError(f"--token-file {options.token_file}: its first line is no token")
    yield EngineSource(
        options.source, failures=options.failures, token=token, ca_file=options.ca_file
    )


def _sink(form: str, options: argparse.Namespace) -> Sink:
    output: Path | None = options.output
    if output is None and sys.stdout is None:  # as `>&-` leaves it
        raise StartupError("cannot write: standard output is closed")
    if form == "table":
        columns = shutil.get_terminal_size((200, 24)).columns
        return TableSink(sys.maxsize if options.failures else columns)  # errors are read whole
    if output is not None and form in {"arrow", "parquet"}:
        return FileSink(output, parquet=form == "parquet")
    lines = form == "jsonl"
    if output is None:
        return JsonSink(sys.stdout.buffer, lines=lines)
    return JsonSink.to_file(output, lines=lines)


def _is_watched(form: str, options: argparse.Namespace) -> bool:
    """Whether to tell how far it is: to a terminal that does not show the rows themselves."""
    shows_rows = options.output is None and (form == "table" or sys.stdout.isatty())
    return sys.stderr.isatty() and not shows_rows


class _Copy:
    """Brings rows from a source to a sink, and tells how far it is where somebody is watching."""

    def __init__(
        self, source: LogSource, sink: Sink, anomalies_only: bool, *, is_watched: bool
    ) -> None:
        self.next_row = 0
        self._source = source
        self._sink = sink
        self._anomalies_only = anomalies_only
        self._rows = self._bytes = 0
        self._is_watched = is_watched

    def newest(self, rows: int) -> None:
        """Copy the newest rows, the oldest of them first."""
        newest_first: list[pa.RecordBatch] = []
        status, before = "", None
        while status != "All" and rows > 0:
            page_rows = SEARCH_ROWS if self._anomalies_only else rows
            page = self._source.page(PageQuery(before, page_rows=page_rows, descending=True))
            status, before = page.status, page.next_row
            if page.batch is None:
                break
            self.next_row = self.next_row or page.next_row + page.batch.num_rows
            newest_first.append(self._wanted(page.batch).slice(0, rows))
            rows -= newest_first[-1].num_rows
        for batch in reversed(newest_first):
            order = range(batch.num_rows - 1, -1, -1)
            self._write(batch.take(pa.array(order, pa.int64())))

    def all(self, query: PageQuery, limit: int | None) -> None:
        """Copy what a query matches, up to so many rows."""
        for batch, row in read_batches(self._source.page, query, FOREVER_MS):
            self.next_row = row
            wanted = self._wanted(batch)
            self._write(wanted if limit is None else wanted.slice(0, limit - self._rows))
            if limit is not None and self._rows >= limit:
                break

    def finish(self) -> None:
        """Complete the files and say what was written."""
        names = self._sink.close()
        if self._is_watched:
            sys.stderr.write("\r\033[K")
        if names:
            sys.stderr.write(f"{self._rows:,} rows written to {', '.join(names)}\n")
        elif isinstance(self._sink, FileSink):
            sys.stderr.write("no rows: no file was written\n")
        elif isinstance(self._sink, TableSink) and not self._rows:
            sys.stderr.write("no rows\n")

    def _wanted(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        if not self._anomalies_only:
            return batch
        counts = batch.column("anomaly").field("count").to_pylist()
        return batch.filter(pa.array([count > 0 for count in counts], pa.bool_()))

    def _write(self, batch: pa.RecordBatch) -> None:
        if not batch.num_rows:
            return
        self._sink.write(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        if self._is_watched:
            sys.stderr.write(f"\r{self._rows:,} rows, {self._bytes / 1e6:,.0f} MB")

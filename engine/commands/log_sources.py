"""Where ``sagitta logs`` reads: a running engine, or the folder of one that is stopped.

A source answers a ``PageQuery`` with a ``LogPage``, whichever it is.
"""

from __future__ import annotations

import contextlib
import datetime
import http.client
import json
import ssl
import urllib.parse
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa

from engine.errors import ConfigError, StartupError
from engine.logring import (
    LogPage,
    PageQuery,
    StoreUnavailableError,
    open_to_read,
    read_failures,
    read_page,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["EngineSource", "LogSource", "open_folder"]

ARROW_STREAM = "application/vnd.apache.arrow.stream"
MAX_PAGE_ROWS = 10_000
TIMEOUT_S = 30.0


class LogSource(Protocol):
    """A log that can be read."""

    def page(self, query: PageQuery) -> LogPage:
        """Read one page."""


@contextlib.contextmanager
def open_folder(folder: Path, *, failures: bool = False) -> Iterator[LogSource]:
    """The log of a stopped engine.

    Args:
        folder: its ``PERSIST_DIR``, or the log's own folder in it.
        failures: read failed requests, not rows.

    Raises:
        StartupError: there is none, it is damaged, or an engine has it.
    """
    try:
        if not folder.exists():
            raise StartupError(
                f"{folder}: no such folder, and the URL of an engine begins with http://"
            )
        directory = folder if (folder / "data.mdb").is_file() else folder / "log"
        store = open_to_read(directory)
    except OSError as error:
        raise StartupError(f"{error.filename}: {error.strerror}") from error
    except StoreUnavailableError as error:
        advice = ": read it from the engine instead, sagitta logs http://HOST:PORT"
        raise StartupError(f"{error}{advice if error.reason == 'in_use' else ''}") from error

    class Folder:
        def page(self, query: PageQuery) -> LogPage:
            return read_failures(store, query) if failures else read_page(store, query)

    try:
        yield Folder()
    finally:
        store.release()


class EngineSource:
    """A running engine's ``/logs``, or its ``/logs/failures``."""

    def __init__(
        self,
        url: str,
        *,
        failures: bool = False,
        token: str | None = None,
        ca_file: Path | None = None,
    ) -> None:
        """Read from an engine; nothing is connected yet.

        Args:
            url: ``http://host:port`` or ``https://…``.
            failures: read failed requests, not rows.
            token: bearer token, where the engine asks for one.
            ca_file: PEM certificates to trust beside the system's.

        Raises:
            ConfigError: it is no such URL, or the file holds no certificates.
        """
        self._url = url
        self._path = "/logs/failures" if failures else "/logs"
        scheme, self._host, self._port = _address(url)
        self._context = ssl.create_default_context() if scheme == "https" else None
        if self._context is not None and ca_file is not None:
            try:
                self._context.load_verify_locations(ca_file)
            except OSError as error:  # that of TLS is one too
                raise ConfigError(f"--ca-file {ca_file}: {error.strerror}") from error
        self._headers = {"Accept": ARROW_STREAM, "Content-Type": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._partition: str | None = None

    def page(self, query: PageQuery) -> LogPage:
        """Read one page, on a connection of its own.

        Raises:
            StartupError: the engine cannot be reached, or refuses.
        """
        words = {"page_size": str(min(query.page_rows, MAX_PAGE_ROWS))}
        if query.descending:
            words["order"] = "desc"
        if query.time_range_ms is not None:
            words["time.start"], words["time.end"] = map(_rfc3339, query.time_range_ms)
        cursor = {} if self._partition is None else {self._partition: query.start_row}
        body = json.dumps(cursor if query.start_row is not None else {}).encode()
        status_text, content = self._post(f"{self._path}?{urllib.parse.urlencode(words)}", body)
        try:
            status = json.loads(status_text)
            ((self._partition, next_row),) = status["next"].items()
            table = pa.ipc.open_stream(content).read_all().combine_chunks()
            batches = table.replace_schema_metadata(None).to_batches()  # it is the page's, no row's
            return LogPage(batches[0] if batches else None, status["status"], next_row)
        except (
            pa.ArrowException,
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
        ) as error:
            raise StartupError(f"{self._url} does not answer as an engine does: {error}") from error

    def _post(self, path: str, body: bytes) -> tuple[str, bytes]:
        connection = (
            http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)
            if self._context is None
            else http.client.HTTPSConnection(
                self._host, self._port, timeout=TIMEOUT_S, context=self._context
            )
        )
        with contextlib.closing(connection):
            try:
                connection.request("POST", path, body, self._headers)
                reply = connection.getresponse()
                content = reply.read()
            except (OSError, http.client.HTTPException) as error:
                raise StartupError(f"{self._url} cannot be read: {error}") from error
        if reply.status != 200:
            raise StartupError(f"{self._url} answers {reply.status}: {_error_text(content)}")
        return reply.headers.get("x-iteration-status", ""), content


def _address(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port."""
    try:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme in {"http", "https"} and parts.hostname:
            return parts.scheme, parts.hostname, parts.port
    except ValueError:
        pass  # brackets or a port that are none
    raise ConfigError(f"{url!r} is no URL of an engine: write http://host:8080")


def _error_text(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")


def _rfc3339(epoch_ms: int) -> str:
    moment = datetime.datetime.fromtimestamp(epoch_ms // 1000, datetime.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{epoch_ms % 1000:03d}Z"

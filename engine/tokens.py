"""Bearer tokens from a file that may change while the engine runs.

One token a line; empty lines and lines that begin with ``#`` are not tokens. The file is looked at
again, by its modification time, at most once a second. A file that cannot be read keeps the tokens
of the last time it could, which is said once. Comparison takes the same time whatever was sent.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import time
from typing import TYPE_CHECKING

from engine.errors import UnauthorizedError

if TYPE_CHECKING:
    import pathlib

__all__ = ["TokenFile"]

LOOK_AGAIN_S = 1.0

log = logging.getLogger("sagitta")


class TokenFile:
    """The accepted tokens, kept as hashes only."""

    def __init__(self, path: pathlib.Path) -> None:
        """Read the file once.

        Raises:
            OSError: it cannot be read.
        """
        self._path = path
        self._hashes: tuple[bytes, ...] = ()
        self._modified_ns = -1
        self._is_readable = True
        self._looked_at = time.monotonic()
        self._read()

    def check(self, authorization: bytes) -> None:
        """Accept a request, or refuse it.

        Args:
            authorization: the header's value; empty where there is none.

        Raises:
            UnauthorizedError: no accepted token in it.
        """
        now = time.monotonic()
        if now - self._looked_at >= LOOK_AGAIN_S:
            self._looked_at = now
            self._read_again()
        scheme, _, token = authorization.strip().partition(b" ")
        digest = hashlib.sha256(token.strip()).digest()
        known = False
        for accepted in self._hashes:
            known |= hmac.compare_digest(digest, accepted)
        if scheme.lower() != b"bearer" or not known:
            raise UnauthorizedError(
                "a bearer token is required: send the header 'Authorization: Bearer <token>' "
                "with a token of API_TOKEN_FILE"
            )

    def _read_again(self) -> None:
        try:
            self._read()
            self._is_readable = True
        except OSError as error:
            if self._is_readable:
                log.warning(
                    "API_TOKEN_FILE cannot be read (%s): keeping its last tokens", error.strerror
                )
            self._is_readable = False

    def _read(self) -> None:
        modified_ns = os.stat(self._path).st_mtime_ns
        if modified_ns == self._modified_ns:
            return
        lines = (line.strip() for line in self._path.read_bytes().splitlines())
        tokens = [line for line in lines if line and not line.startswith(b"#")]
        self._hashes = tuple(hashlib.sha256(token).digest() for token in tokens)
        self._modified_ns = modified_ns
        if not tokens:
            log.warning("API_TOKEN_FILE holds no token: every request is refused")

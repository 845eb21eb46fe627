"""A call that asks once: its one request in, the answer out, on a thread of its own.

Such a call may have to wait for the disk, which the event loop must not. The thread makes the
messages of the answer one after the other, and the next one only when the client has taken most of
what was sent: memory stays small however slow the client is.

Rules that hold here:
- The thread touches the call through the event loop alone, but for ``Call.is_over``.
- One message is on its way to the event loop at a time, while the next one is made.
- ``on_end`` is called once: when the call is over and no thread works for it any more. The number
  of admitted calls so bounds the threads.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from engine.errors import DecodeError, PayloadTooLargeError, ShuttingDownError
from engine.http2.call import HIGH_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Final

    from engine.flight.messages import Piece
    from engine.http2.call import Call

    Answer = Callable[["ShortCall", bytes], Generator[tuple[Piece, ...]]]

__all__ = ["ShortCall"]

MAX_REQUEST_BYTES: Final = 1 << 20


class ShortCall:
    """One call; a ``Handler``.

    Attributes:
        check: raises where the caller is not welcome any more; any thread.
    """

    def __init__(
        self,
        call: Call,
        answer: Answer,
        check: Callable[[], None],
        finish_with: Callable[[Call, Exception], None],
        on_end: Callable[[ShortCall], None],
    ) -> None:
        """Wait for the request.

        Args:
            call: to be answered.
            answer: makes the messages of the answer to a request, on the call's own thread.
            check: as the attribute.
            finish_with: ends the call with an error.
            on_end: told that the call is over.
        """
        self._call = call
        self._answer = answer
        self._finish_with = finish_with
        self._on_end = on_end
        self._has_room = threading.Event()
        self._has_room.set()
        self._is_begun = False
        self.check = check

    def place(self, size_bytes: int, _first: memoryview) -> memoryview | None:
        """Memory for a large request; none where it is too large."""
        if size_bytes <= MAX_REQUEST_BYTES:
            return memoryview(bytearray(size_bytes))
        self._end(PayloadTooLargeError(f"the request has {size_bytes} bytes: it is too large"))
        return None

    def take_at_once(self, _message: bytes | memoryview) -> bool:
        """No: it takes a thread."""
        return False

    def take(self, message: bytes | memoryview) -> None:
        """Answer the request; there is one."""
        if self._is_begun:
            return
        self._is_begun = True
        request = bytes(message)
        threading.Thread(target=self._run, args=(request,), name="flight-call", daemon=True).start()

    def end(self) -> None:
        """The client has said everything."""
        if not self._is_begun:
            self._end(DecodeError("the call has no request in it"))

    def drained(self) -> None:
        """The client has read."""
        self._has_room.set()

    def leave(self) -> None:
        """The client has gone."""
        self._has_room.set()
        if not self._is_begun:
            self._is_begun = True
            self._on_end(self)

    def refuse_new(self) -> None:
        """The engine stops: do not wait for a request, and look at once whether to go on."""
        self._has_room.set()
        if not self._is_begun:
            self._end(ShuttingDownError("the engine is stopping and takes no new calls"))

    def _end(self, error: Exception | None) -> None:
        self._is_begun = True
        if error is None:
            self._call.finish()
        else:
            self._finish_with(self._call, error)
        self._on_end(self)

    def _run(self, request: bytes) -> None:
        """The thread."""
        outcome: Exception | None = None
        try:
            with contextlib.closing(self._answer(self, request)) as messages:
                for message in messages:
                    self._has_room.wait()
                    if self._call.is_over:
                        break
                    self._has_room.clear()
                    self._post(self._send, message)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client is told of an end
            outcome = error
        self._has_room.wait()  # its place is given back once what was sent is read, but for the end
        self._post(self._end, outcome)
        del outcome  # its traceback holds this frame, and this frame what was to be sent

    def _post(self, function: Callable[..., None], argument: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and every connection with it
            self._call.loop.call_soon_threadsafe(function, argument)

    def _send(self, message: tuple[Piece, ...]) -> None:
        self._call.send(*message)
        if self._call.unsent_bytes <= HIGH_BYTES or self._call.is_over:
            self._has_room.set()

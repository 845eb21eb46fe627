"""What answers a call, as the call sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from typing import Final

__all__ = ["NOBODY", "Handler"]


class Handler(Protocol):
    """What answers a call; called on the event loop, and never raises."""

    def place(self, size_bytes: int, first: memoryview) -> memoryview | None:
        """Where a large message is to stand, which begins with ``first``.

        Returns:
            Memory of exactly that size; None where the call is refused, by ``finish``.
        """

    def take_at_once(self, message: bytes | memoryview) -> bool:
        """Whether a message was answered here and now; its bytes may be others a moment later.

        Every message is offered; a large one perhaps before it is placed, and then again.
        """

    def take(self, message: bytes | memoryview) -> None:
        """A message that was not; a large one stands where it was placed."""

    def end(self) -> None:
        """The client has sent its last message."""

    def drained(self) -> None:
        """``unsent_bytes`` has fallen below ``HIGH_BYTES`` again."""

    def leave(self) -> None:
        """The call is over without ``finish``: cancelled, too late, or its connection is lost."""


class _Nobody:
    """The handler of a call that is over: whatever its client still sends is nothing."""

    def place(self, _size_bytes: int, _first: memoryview) -> memoryview | None:
        """Nowhere."""

    def take_at_once(self, _message: bytes | memoryview) -> bool:
        """Nothing comes after it."""
        return True

    def take(self, _message: bytes | memoryview) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""

    def drained(self) -> None:
        """Nothing."""

    def leave(self) -> None:
        """Nothing."""


NOBODY: Final = _Nobody()

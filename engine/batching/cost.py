"""What runs are expected to take, which decides where they are done."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final

__all__ = ["RunCost"]

LONG_NS: Final = 50_000_000
WARY_RUNS: Final = 1_000


class RunCost:
    """How long runs take, by the power of two of their rows: an average that follows the present.

    Written without a lock: a lost update costs nothing but a little staleness.
    """

    def __init__(self) -> None:
        self._mean_ns: list[float] = [0.0] * 64
        self._least_ns: list[float] = [0.0] * 64
        self._wary_runs: list[int] = [0] * 64  # how many are still to come since a long one

    def learn(self, rows: int, run_ns: int) -> None:
        """Take a measured run into account, a longer one as twice the mean at most.

        Most longer runs are short ones that the system interrupted: one of 10 ms must not send the
        next requests, of 10 us, to another thread. No interruption lasts as long as ``LONG_NS``.
        """
        size = rows.bit_length()
        mean_ns = self._mean_ns[size] or float(run_ns)
        self._mean_ns[size] = mean_ns + (min(run_ns, 2.0 * mean_ns) - mean_ns) / 8
        if run_ns > LONG_NS:
            self._wary_runs[size] = WARY_RUNS
        elif self._wary_runs[size]:
            self._wary_runs[size] -= 1
        least_ns = self._least_ns[size] or float(run_ns)
        self._least_ns[size] = min(run_ns, least_ns + (run_ns - least_ns) / 256)

    def least_ns(self, rows: int) -> float | None:
        """What a run of about so many rows takes when nothing interrupts it; None if not known.

        A measured time holds the wait for the interpreter's lock; the least of many does not. Nor
        does it say anything about the next run where one of the last ``WARY_RUNS`` took long: then
        what a run takes depends on its values, as with loops, and is not known.
        """
        size = rows.bit_length()
        return None if self._wary_runs[size] else self._least_ns[size] or None

    def estimate_ns(self, rows: int) -> float | None:
        """The expected time of a run of about so many rows; None where ``least_ns`` is not known.

        What smaller runs took says nothing: whoever guesses too little stops the event loop.
        """
        size = rows.bit_length()
        return None if self._wary_runs[size] else self._mean_ns[size] or None

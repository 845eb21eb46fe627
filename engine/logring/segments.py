"""The segments of a log, oldest first: a ring of files that never takes more than its share.

Rules that hold here:
- The space of all files is allocated at once where the file system can, so that a full disk does
  not reach the ring; what it gives up is used again, never returned.
- One thread at a time changes the ring. ``live`` is replaced, never changed: a reader takes it once
  and asks each segment whether it was evicted meanwhile.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from engine.logring.segment import HEAD_BYTES, Segment, SegmentFile

if TYPE_CHECKING:
    import pathlib

__all__ = ["SegmentRing"]

log = logging.getLogger("sagitta")


class SegmentRing:
    """Files of one name in a folder.

    Attributes:
        live: segments with rows, oldest first; the last one is being written.
        segment_bytes: size of a segment.
        budget_bytes: bound of all of them together.
        is_reserved: the file system has set the space aside.
    """

    def __init__(self, directory: pathlib.Path, name: str, budget_bytes: int, count: int) -> None:
        """Describe a ring of about ``count`` segments in at most ``budget_bytes``."""
        self.live: tuple[Segment, ...] = ()
        self.segment_bytes = budget_bytes // count // 4096 * 4096
        self.budget_bytes = budget_bytes
        self.is_reserved = False
        self._directory = directory
        self._name = name
        self._spare: list[SegmentFile] = []
        self._empty: list[SegmentFile] = []  # without space: a reader may still look into them

    # -- opening -------------------------------------------------------------------------------

    def load(self, *, is_trusted: bool, flags: int = os.O_RDWR) -> None:
        """Open the files that are there and find their rows; rows are kept only where they grow.

        Args:
            is_trusted: what full segments say of themselves may be believed.
            flags: how to open the files.

        Raises:
            OSError: the disk refuses.
        """
        found: list[Segment] = []
        for path in sorted(self._directory.glob(f"{self._name}-*")):
            file = SegmentFile(path, flags)
            segment = Segment.open(file, is_trusted=is_trusted)
            if segment is None:
                self._spare.append(file)
            else:
                found.append(segment)
        live: list[Segment] = []
        for segment in sorted(found, key=lambda segment: segment.first_row):
            stop_row = live[-1].tail[1] if live else 0
            if segment.first_row < stop_row:
                log.error("%s holds rows of another file and is left out", segment.file.path)
                self._spare.append(segment.file)
                continue
            live.append(segment)
        self.live = tuple(live)

    def fit(self) -> None:
        """Bring the files to the size and number that the budget asks for, and allocate them.

        Raises:
            OSError: the disk refuses.
        """
        for file in [file for file in self._spare if file.size_bytes != self.segment_bytes]:
            self._spare.remove(file)
            _remove(file)
        while self._total_bytes() > self.budget_bytes:
            if self._spare:
                _remove(self._spare.pop())
            else:
                _remove(self._evict())
        while self._total_bytes() + self.segment_bytes <= self.budget_bytes:
            file = self._create()
            file.resize(self.segment_bytes)
            self._spare.append(file)
        self.reserve()

    def reserve(self) -> bool:
        """Allocate what is not allocated yet: whether all is."""
        if self.is_reserved:
            return True
        for file in self._files():
            try:
                os.posix_fallocate(file.descriptor, 0, file.size_bytes)
            except OSError:
                for spare in self._spare:  # gives back what the attempt had taken
                    size_bytes = spare.size_bytes
                    spare.resize(0)
                    spare.resize(size_bytes)
                return False
        self.is_reserved = True
        return True

    def _create(self) -> SegmentFile:
        names = {file.path.name for file in self._files()}
        number = next(n for n in range(len(names) + 1) if f"{self._name}-{n:03d}" not in names)
        path = self._directory / f"{self._name}-{number:03d}"
        return SegmentFile(path, os.O_RDWR | os.O_CREAT)

    def _files(self) -> list[SegmentFile]:
        return [*(segment.file for segment in self.live), *self._spare, *self._empty]

    def _total_bytes(self) -> int:
        return sum(file.size_bytes for file in self._files())

    # -- writing -------------------------------------------------------------------------------

    @property
    def most_bytes(self) -> int:
        """What fits into an empty segment."""
        return self.segment_bytes - HEAD_BYTES

    def advance(self, first_row: int) -> Segment:
        """Begin the next segment, in the place of the oldest one where all are in use.

        Raises:
            OSError: the disk refuses; rows may have left all the same.
        """
        if self.live:
            self.live[-1].seal()
        while not self._spare:
            self._free()
        segment = Segment.begin(self._spare[-1], first_row)
        self._spare.pop()
        self.live = (*self.live, segment)
        return segment

    def _free(self) -> None:
        """Let the oldest segment go; one of an earlier limit gives way to those of this one."""
        file = self._evict()
        if file.size_bytes == self.segment_bytes:
            self._spare.append(file)
            return
        file.resize(0)
        self._empty.append(file)
        self.is_reserved = False
        while self._total_bytes() + self.segment_bytes <= self.budget_bytes:
            file = self._empty.pop() if self._empty else self._create()
            file.resize(self.segment_bytes)
            self._spare.append(file)

    def _evict(self) -> SegmentFile:
        oldest = self.live[0]
        oldest.is_evicted = True
        self.live = self.live[1:]
        return oldest.file

    def sync(self) -> None:
        """Ask the disk to keep what was written; rows may be written meanwhile.

        Raises:
            OSError: it refuses.
        """
        for segment in self.live:
            if segment.is_dirty:
                segment.is_dirty = False
                try:
                    os.fdatasync(segment.file.descriptor)
                except OSError:
                    segment.is_dirty = True
                    raise

    def close(self) -> None:
        """Close the files; nobody may be reading or writing."""
        for file in self._files():
            file.close()

    # -- what there is -------------------------------------------------------------------------

    @property
    def first_row(self) -> int | None:
        """The oldest row; None where there is none."""
        live = self.live
        return live[0].first_row if live else None

    @property
    def stop_row(self) -> int:
        """The row after the newest one; 0 where there is none."""
        live = self.live
        return live[-1].tail[1] if live else 0

    @property
    def used_bytes(self) -> int:
        """Bytes of the segments that have rows."""
        return sum(segment.tail[0] for segment in self.live)


def _remove(file: SegmentFile) -> None:
    """Delete a file; nobody may be reading."""
    file.close()
    file.path.unlink()

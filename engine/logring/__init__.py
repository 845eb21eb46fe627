"""The bounded log of inferences on disk, and reading it back as Arrow."""

from engine.logring.counters import RingStats
from engine.logring.failures import Failure, read_failures
from engine.logring.files import StoreUnavailableError
from engine.logring.opening import open_to_read
from engine.logring.pages import LogPage, PageQuery, parse_query, status_text
from engine.logring.reader import read_batches, read_page
from engine.logring.ring import LogRing

__all__ = [
    "Failure",
    "LogPage",
    "LogRing",
    "PageQuery",
    "RingStats",
    "StoreUnavailableError",
    "open_to_read",
    "parse_query",
    "read_batches",
    "read_failures",
    "read_page",
    "status_text",
]

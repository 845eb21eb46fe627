"""The bounded log of inferences on disk, and reading it back as Arrow."""

from engine.logring.counters import RingStats
from engine.logring.failures import Failure
from engine.logring.pages import LogPage, PageQuery, parse_query, status_text
from engine.logring.ring import LogRing

__all__ = [
    "Failure",
    "LogPage",
    "LogRing",
    "PageQuery",
    "RingStats",
    "parse_query",
    "status_text",
]

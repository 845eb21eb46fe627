"""Requests that wait are run together: the line before the run slots, and what forms in it."""

__all__: list[str] = []

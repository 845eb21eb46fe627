"""The commands beside ``serve`` that people type."""

__all__: list[str] = []

"""The commands beside ``serve`` that people type: publish, pull, inspect."""

__all__: list[str] = []

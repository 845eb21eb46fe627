"""What a published pipeline means: its definition and, from it, what runs for a request."""

__all__: list[str] = []

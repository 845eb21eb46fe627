"""The edge's side of its operations centre: so far the bundle that names both."""

__all__: list[str] = []

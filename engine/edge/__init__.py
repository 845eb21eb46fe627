"""The edge's side of its operations centre: bundle, identity, log upload, desired publish."""

__all__: list[str] = []

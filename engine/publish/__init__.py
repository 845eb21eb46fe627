"""The published pipeline as an OCI artifact: naming it, finding it, verifying it."""

__all__: list[str] = []

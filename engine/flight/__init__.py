"""The Arrow Flight shell: descriptors, tickets and Flight errors around the data plane."""

__all__: list[str] = []

"""ONNX Runtime sessions: execution providers, threads, warm-up and the slots that run them."""

__all__: list[str] = []

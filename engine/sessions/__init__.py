"""ONNX Runtime: sessions, the processors they may use, and the slots that bound their runs."""

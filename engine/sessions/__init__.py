"""ONNX Runtime: sessions, the processors they may use, and the threads that they get."""

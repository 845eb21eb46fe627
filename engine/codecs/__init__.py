"""Bytes to rows and results to bytes: pure, no I/O, no clock, no threads."""

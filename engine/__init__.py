"""Sagitta: an Arrow-native edge inference engine. The command is ``sagitta``; see README.md."""

__all__ = ["__version__"]

__version__ = "0.1.0"

"""The configuration of ``sagitta serve``: environment variables in, one frozen object out.

Rules that hold here:
- Nothing here reads the process environment: the caller passes a mapping, so a test passes a dict.
- Every variable is one row: a field of ``EngineConfig`` with its name, parser, default and reason.
- All problems are collected and raised together; the text of a secret is in none of them.
- Parts of the engine receive the few values that they need, never the whole object.
"""

from engine.config.engine_config import EngineConfig, help_table
from engine.config.persist import resolve_persist_dir
from engine.config.values import Accelerator, EdgeBundle, InferenceResponse, Secret

__all__ = [
    "Accelerator",
    "EdgeBundle",
    "EngineConfig",
    "InferenceResponse",
    "Secret",
    "help_table",
    "resolve_persist_dir",
]

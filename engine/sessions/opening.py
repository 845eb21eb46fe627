"""An ONNX file as a session of ONNX Runtime, and what its inputs and outputs are.

Rules that hold here:
- Loaded by path, never from bytes: external data is then found, and checked, beside the model.
- Options by measurement: no spinning (threads of other slots starve), no arena and no memory
  pattern (a row's run is 10 % quicker and memory does not grow with every new shape).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import onnxruntime as ort

from engine.errors import StartupError
from engine.values import ELEMENT_TYPES, TensorSpec

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Sequence

    from engine.values import ModelIdentity

__all__ = ["ModelOptions", "open_session", "reason_of", "request_names", "tensor_spec"]

ERRORS_ONLY = 3


@dataclasses.dataclass(frozen=True, slots=True)
class ModelOptions:
    """How a model was published to be run.

    Attributes:
        tensor_fields: request columns for the model's inputs, by position; None = the model's own
            names.
        single_rows: published with ``batch_config: single``: one row in each run.
        threads: intra-op threads, exactly; the numbers of some models depend on it.
        providers: execution providers, in order of preference.
    """

    tensor_fields: tuple[str, ...] | None = None
    single_rows: bool = False
    threads: int = 1
    providers: tuple[str, ...] = ("CPUExecutionProvider",)


def open_session(
    identity: ModelIdentity, path: pathlib.Path, options: ModelOptions
) -> ort.InferenceSession:
    """Load a model.

    Args:
        identity: who it is, for messages.
        path: the ONNX file.
        options: how to run it.

    Returns:
        The session, whose ``run`` any thread may call.

    Raises:
        StartupError: ONNX Runtime does not take it.
    """
    session_options = ort.SessionOptions()
    session_options.intra_op_num_threads = options.threads
    session_options.inter_op_num_threads = 1
    session_options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    session_options.enable_cpu_mem_arena = False
    session_options.enable_mem_pattern = False
    session_options.log_severity_level = ERRORS_ONLY
    session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(str(path), session_options, providers=list(options.providers))
    except Exception as error:
        raise StartupError(
            f"model {identity.name!r} ({path.name}) cannot be loaded: {reason_of(error)}"
        ) from error


def tensor_spec(value: ort.NodeArg, name: str, identity: ModelIdentity) -> TensorSpec:
    """An input or output that the model declares, under the name that requests have for it.

    Raises:
        StartupError: it is no tensor that can be served.
    """
    kind = str(value.type)
    element = ELEMENT_TYPES.get(kind.removeprefix("tensor(").removesuffix(")"))
    if element is None:
        raise StartupError(
            f"model {identity.name!r}: {value.name!r} is a {kind}, which cannot be served; "
            f"supported are tensors of {', '.join(ELEMENT_TYPES)}"
        )
    shape = tuple(axis if isinstance(axis, int) else None for axis in value.shape)
    return TensorSpec(name, element, shape)


def request_names(
    identity: ModelIdentity, names: list[str], tensor_fields: tuple[str, ...] | None
) -> Sequence[str]:
    """What requests call a model's inputs.

    Args:
        identity: the model, for messages.
        names: of its inputs.
        tensor_fields: the published names, by position; None = the model's own.

    Raises:
        StartupError: there is not one published name for each input.
    """
    if tensor_fields is None:
        return names
    if len(tensor_fields) != len(names):
        raise StartupError(
            f"model {identity.name!r} has the inputs {names}, but its tensor_fields name "
            f"{list(tensor_fields)}: one for each input, by position"
        )
    return tensor_fields


def reason_of(error: Exception) -> str:
    """ONNX Runtime's message, on one line, without its source location prefix."""
    text = " ".join(str(error).split())  # which index it was stands on lines of its own
    return text.split(" : ", 3)[-1][:500]

"""The plain records that parts hand to one another; no behaviour beyond naming their own fields.

Rules that hold here:
- Arrays inside a record are views into somebody's buffer unless the field says otherwise: copy to
  keep. Nothing writes into an array after it was put into a record, but for a ``BoundRows``'s.
- Nothing changes a record after it was handed on. Those that are made once a request are not
  frozen: a frozen one takes three times as long to make, 0.8 us.
- ``ELEMENT_TYPES`` is the one table of tensor element types: ONNX's spelling, numpy's, the name
  that the documented legacy reply prints, and the ``array`` type code that reads JSON numbers.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Mapping
    from typing import Any, TypeAlias

    import numpy as np
    import pyarrow as pa

    Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
    Column: TypeAlias = pa.Array | list[object]

__all__ = [
    "ELEMENT_TYPES",
    "SPLIT_COLUMN",
    "BoundRows",
    "CheckResult",
    "ElementType",
    "Frame",
    "InferResult",
    "ModelIdentity",
    "Output",
    "PipelineIdentity",
    "RowModels",
    "Shadow",
    "TensorSpec",
]


@dataclasses.dataclass(frozen=True, slots=True)
class ElementType:
    """One tensor element type in the four spellings that the engine needs.

    Attributes:
        onnx: as ONNX Runtime prints it inside ``tensor(...)``.
        numpy: numpy dtype name; ``object`` for strings.
        legacy: the key of a legacy output, e.g. ``Float``.
        array_code: ``array.array`` type code that holds a JSON number of this type without loss
            beyond rounding; None where numbers are not what the type holds.
    """

    onnx: str
    numpy: str
    legacy: str
    array_code: str | None


ELEMENT_TYPES = {
    element.onnx: element
    for element in (
        ElementType("float16", "float16", "Half", "d"),
        ElementType("float", "float32", "Float", "f"),
        ElementType("double", "float64", "Double", "d"),
        ElementType("int8", "int8", "Int8", "b"),
        ElementType("int16", "int16", "Int16", "h"),
        ElementType("int32", "int32", "Int32", "i"),
        ElementType("int64", "int64", "Int64", "q"),
        ElementType("uint8", "uint8", "Uint8", "B"),
        ElementType("uint16", "uint16", "Uint16", "H"),
        ElementType("uint32", "uint32", "Uint32", "I"),
        ElementType("uint64", "uint64", "Uint64", "Q"),
        ElementType("bool", "bool", "Bool", None),
        ElementType("string", "object", "String", None),
    )
}


SPLIT_COLUMN = "_model_split"
"""The output column that tells which model of a split answered (recorded A/B logs)."""


@dataclasses.dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a model says of one input or output.

    Attributes:
        name: the column's name in requests and replies (``tensor_fields`` applied).
        element: element type.
        shape: the declared shape, first the batch axis; None = any length; ``()`` = a bare scalar.
        row_shape: the shape of one row: the declared shape without its batch axis.
        row_size: how many values a row has; None where the model leaves an axis open, and for a
            bare scalar.
    """

    name: str
    element: ElementType
    shape: tuple[int | None, ...]
    row_shape: tuple[int | None, ...] = dataclasses.field(init=False, repr=False, compare=False)
    row_size: int | None = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Derive what every request asks for."""
        sizes = [axis for axis in self.shape[1:] if axis is not None]
        is_known = len(sizes) == len(self.shape) - 1
        object.__setattr__(self, "row_shape", self.shape[1:])
        object.__setattr__(self, "row_size", math.prod(sizes) if is_known else None)

    def __str__(self) -> str:
        axes = ["rows", *("?" if axis is None else str(axis) for axis in self.row_shape)]
        return f"{self.name}: {self.element.onnx} [{', '.join(axes[: len(self.shape)])}]"


@dataclasses.dataclass(frozen=True, slots=True)
class ModelIdentity:
    """A published model: name, version id, sha256 of its file in hex."""

    name: str
    version: str
    sha: str


@dataclasses.dataclass(frozen=True, slots=True)
class PipelineIdentity:
    """A published pipeline: its name and version id."""

    id: str
    version: str


@dataclasses.dataclass(slots=True)
class Frame:
    """The rows of one request, as they were sent.

    Attributes:
        rows: number of rows.
        columns: per column an Arrow array of ``rows`` values (a view into the request body) or,
            from JSON, a list of ``rows`` Python values.
        dense: columns whose numbers are known to lie side by side, ``[rows, n]``, views as well.
        original: the request document where the legacy reply repeats it, else None.
        row_shapes: the shape of a row where the request declares it (Arrow ``tensor_type``).
        has_literals: False where the JSON text is known to hold no true, false or null.
    """

    rows: int
    columns: Mapping[str, Column]
    original: object | None = None
    row_shapes: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    has_literals: bool = True
    dense: Mapping[str, Array] | None = None


@dataclasses.dataclass(slots=True)
class Output:
    """One output column of a result.

    Attributes:
        name: the model's own name of the output.
        values: ``[rows, ...]`` where ``per_row``, else whatever shape the model gave; where
            ``ragged``, object ``[rows]`` holding one array per row.
        per_row: whether the first axis counts the request's rows.
        ragged: whether the rows were run one by one and gave arrays of their own shapes.
    """

    name: str
    values: Array
    per_row: bool
    ragged: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class BoundRows:
    """Rows of a model with a single input, in memory that is used for every run.

    One thread at a time: it writes ``values``, calls ``run``, and has taken from ``outputs`` what
    it needs before anyone writes again.

    Attributes:
        name: the input's column.
        values: the numbers, row by row.
        tensor: the same memory, ``[rows, n]``.
        outputs: what the model gave, ordered by name.
        run: runs the model; raises what ONNX Runtime raises.
    """

    name: str
    values: array[Any]
    tensor: Array
    outputs: tuple[Output, ...]
    run: Callable[[], None]


@dataclasses.dataclass(slots=True, eq=False)
class CheckResult:
    """What the validation checks found in the rows of one request.

    Attributes:
        count: uint32 ``[rows]``, how many checks are true.
        flags: per name, bool ``[rows]``, whether the check is true; in the checks' order.
        verdicts: per check (two may share a name) what the legacy reply prints where it is true,
            and its bool ``[rows]``.
    """

    count: Array
    flags: Mapping[str, Array]
    verdicts: tuple[tuple[Mapping[str, object], Array], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Shadow:
    """What a challenger made of the same rows; it stands beside the answer.

    Attributes:
        model_name: the challenger.
        outputs: its outputs, ordered by name; without rows where they are missing.
        is_missing: whether it failed or was late: every column then has no value.
    """

    model_name: str
    outputs: tuple[Output, ...]
    is_missing: bool = False


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class RowModels:
    """Which model answered which row, where a split sent the rows of a request to several.

    Attributes:
        models: those that answered any.
        rows: int ``[rows]``, positions in ``models``.
    """

    models: tuple[ModelIdentity, ...]
    rows: Array


@dataclasses.dataclass(slots=True)
class InferResult:
    """The answer to one request, before it is written in any format.

    Attributes:
        frame: the request's rows.
        outputs: the last step's outputs, ordered by name.
        time_ms: when the request was answered, ms since the epoch.
        elapsed_ns: time to decode the request, then each step's time.
        model: the last step's model; where the rows were split, that of the last row.
        pipeline: the pipeline that ran.
        partition: name of the edge, or of the host where there is none.
        checks: what the validation checks found; None where the pipeline has none.
        shadows: the challengers' results, in the definition's order, missing ones too.
        row_models: the last step's model of each row; None where ``model`` answered all.
    """

    frame: Frame
    outputs: tuple[Output, ...]
    time_ms: int
    elapsed_ns: tuple[int, ...]
    model: ModelIdentity
    pipeline: PipelineIdentity
    partition: str
    checks: CheckResult | None = None
    shadows: tuple[Shadow, ...] = ()
    row_models: RowModels | None = None

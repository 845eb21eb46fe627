"""What the two forms of the documented record, JSON and Arrow, write alike: metadata and rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import orjson

from engine.errors import SchemaMismatchError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.values import Array, InferResult, ModelIdentity, Output, RowModels

__all__ = ["metadata_values", "row_model_texts", "rows_of"]


def metadata_values(result: InferResult, dropped: Sequence[str] = ()) -> dict[str, object]:
    """The record's ``metadata`` in documented order; the same for every row of a request.

    But for ``last_model`` where a split sent rows to several models: ``row_model_texts`` has it.
    ``dropped`` names the columns that are left out.
    """
    return {
        "last_model": _model_text(result.model),
        "pipeline_version": result.pipeline.version,
        "elapsed": result.elapsed_ns,
        "dropped": list(dropped),
        "partition": result.partition,
    }


def row_model_texts(row_models: RowModels) -> list[object]:
    """``last_model`` of each row."""
    texts = [_model_text(model) for model in row_models.models]
    return [texts[model] for model in row_models.rows.tolist()]


def _model_text(model: ModelIdentity) -> str:
    return orjson.dumps({"model_name": model.name, "model_sha": model.sha}).decode()


def rows_of(output: Output, rows: int) -> Array:
    """An output as one value per row; the only row of a request takes an output of any shape."""
    if output.per_row:
        return output.values
    if rows == 1:
        return output.values[np.newaxis]
    raise SchemaMismatchError(
        f"output {output.name!r} has the shape {list(output.values.shape)} for {rows} rows: it has "
        "not one value per row, which records need. Send one row per request, or ask for the "
        "legacy reply (without dataset parameters)"
    )

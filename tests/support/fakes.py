"""Models without ONNX Runtime, for what only needs something that runs."""

import numpy as np

from engine.values import ELEMENT_TYPES, ModelIdentity, Output, TensorSpec


def spec(name, element="float", shape=(None, 2)):
    return TensorSpec(name, ELEMENT_TYPES[element], shape)


class FakeModel:
    """Gives what ``function(*feeds)`` gives for its one output; remembers its feeds."""

    takes_any_rows = True

    def __init__(self, name, function=None, *, inputs=None, outputs=None):
        self.identity = ModelIdentity(name, f"{name}-version", f"{name}-sha")
        self.inputs = tuple(inputs or [spec("x")])
        self.outputs = tuple(outputs or [spec("y")])
        self.function = function or (lambda *feeds: feeds[0])
        self.fed = []

    def bind_rows(self, rows):
        return None

    def run(self, feeds, rows):
        self.fed.append((feeds, rows))
        given = self.function(*feeds)
        values = given if isinstance(given, tuple) else (given,)
        return tuple(
            Output(declared.name, np.asarray(value), per_row=True)
            for declared, value in zip(self.outputs, values, strict=True)
        )

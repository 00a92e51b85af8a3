"""Tensors that clients send or receive in another shape than the model file has: `reshape` of a configuration.

As in Triton (model_configuration.md, "Reshape"): `shape` is the client's, `reshape` the model's, of inputs and outputs
alike; the elements keep their order. A free dimension of one side is a free dimension of the other, the first of the
first; between two of them both sides have the same number of elements. So [2, 4, -1, 6] may become [8, -1, 1, 6].

Behind a session's `run`, so that nobody else knows of it; a model without such tensors has a plain `Session`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from service.errors import InferenceFailed, ModelRejected
from service.protocol import Array
from service.repository import InputConfig, ModelConfig, OutputConfig
from service.session import Session

Shape = tuple[int, ...]


def open_session(path: Path, config: ModelConfig, *, providers: tuple[str, ...], intra_op_threads: int) -> Session:
    """The session that answers in the client's shapes. Raises ModelRejected."""
    inputs, outputs = _pairs("input", config.inputs, config), _pairs("output", config.outputs, config)
    if not inputs and not outputs:
        return Session(path, providers=providers, intra_op_threads=intra_op_threads)
    return _ReshapingSession(path, inputs, outputs, providers=providers, intra_op_threads=intra_op_threads)


class _ReshapingSession(Session):
    """`inputs` and `outputs`, the declarations, stay the model file's."""

    def __init__(
        self,
        path: Path,
        inputs: Mapping[str, tuple[Shape, Shape]],
        outputs: Mapping[str, tuple[Shape, Shape]],
        *,
        providers: tuple[str, ...],
        intra_op_threads: int,
    ) -> None:
        """inputs, outputs: by name, the shape that a tensor comes in, and the one it goes on in."""
        super().__init__(path, providers=providers, intra_op_threads=intra_op_threads)
        self._reshaped_inputs = inputs
        self._reshaped_outputs = {name: (model, client) for name, (client, model) in outputs.items()}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        fed = {**inputs, **{name: _reshaped(inputs[name], *pair) for name, pair in self._reshaped_inputs.items()}}
        answers = super().run(fed)
        for name, pair in self._reshaped_outputs.items():
            if not _fits(answers[name].shape, pair[0]):
                raise InferenceFailed(
                    f"output {name!r} has shape {list(answers[name].shape)}, its reshape says {list(pair[0])}"
                )
            answers[name] = _reshaped(answers[name], *pair)
        return answers


def _pairs(
    kind: str, tensors: Iterable[InputConfig | OutputConfig], config: ModelConfig
) -> dict[str, tuple[Shape, Shape]]:
    """The client's and the model's shape of those that are reshaped, by name. Raises ModelRejected."""
    pairs = {tensor.name: (tensor.shape, tensor.reshape) for tensor in tensors if tensor.reshape is not None}
    for name, (client, model) in pairs.items():
        if _counts(client) != _counts(model):
            raise ModelRejected(
                f"{config.file_name}: {kind} {name!r} has shape {list(client)} and reshape {list(model)}; expected as "
                f"many free dimensions in both, and as many elements before, between and behind them"
            )
    return pairs


def _counts(shape: Shape) -> list[int]:
    """Elements before, between and behind the free dimensions."""
    ends = [position for position, size in enumerate(shape) if size == -1]
    begins = [0, *(end + 1 for end in ends)]
    return [math.prod(shape[begin:end]) for begin, end in zip(begins, [*ends, len(shape)], strict=True)]


def _fits(shape: Sequence[int], declared: Shape) -> bool:
    return len(shape) == len(declared) and all(want in (-1, have) for have, want in zip(shape, declared, strict=True))


def _reshaped(array: Array, declared: Shape, wanted: Shape) -> Array:
    free = iter([size for size, dim in zip(array.shape, declared, strict=True) if dim == -1])
    return array.reshape([next(free) if dim == -1 else dim for dim in wanted])

"""Are the sizes that a model notes on its own tensors still true? Where they are not, all of them are forgotten.

Tools write such notes (`value_info`), and whoever frees an input's batch or image size afterwards seldom takes them
away. Nothing reads them then, ONNX Runtime included, and inference cannot prove them wrong: a size that depends on a
free one has no number. So the free sizes get numbers that nobody would have noted, and a note that says another
number than inference does now is stale, and with it all that the same tool wrote.

What inference does not know of is believed: behind an operator of one's own, notes are all there is.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from training.fold.inference import infer

# Free sizes, in the order in which inputs name them: odd, so that halves are rounded, and large enough for five
# halvings; a first axis is mostly a batch.
_FIRST_AXIS = 37
_OTHERS = (293, 307, 311, 313, 317, 331, 337, 347, 349, 353, 359, 367, 373, 379, 383, 389, 397, 401, 409, 419, 421, 431)


def forget_stale_sizes(model: ir.Model) -> bool:
    """Take all noted sizes off `model`'s inner tensors if one of them is not true; were they taken off?

    Inputs and outputs keep theirs: these are promised to whoever uses the file.
    """
    if not any(size is not None for value in _inner(model) for size in _numbers(value)):
        return False
    twin = _with_numbers(model)
    for value in _inner(twin):
        value.shape = None
    for output in twin.graph.outputs:
        output.shape = None
    inferred = infer(model, twin)
    if not any(_differs(_numbers(value), learned.sizes) for value, learned in inferred):
        return False
    for value in _inner(model):
        value.shape = None
    return True


def _inner(model: ir.Model) -> Iterator[ir.Value]:
    """What nodes compute, but for the outputs of the model."""
    for node in model.graph.all_nodes():
        yield from (value for value in node.outputs if not value.is_graph_output())


def _numbers(value: ir.Value) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) else None for size in value.shape or ())


def _differs(noted: tuple[int | None, ...], inferred: tuple[int | str | None, ...] | None) -> bool:
    if not noted or inferred is None:
        return False
    if len(noted) != len(inferred):
        return True
    pairs = zip(noted, inferred, strict=True)
    return any(mine != size for mine, size in pairs if mine is not None and isinstance(size, int))


def _with_numbers(model: ir.Model) -> ir.Model:
    """A copy in which every free size of an input is a number, the same for the same name."""
    twin, numbers, others = model.clone(), dict[str, int](), iter(_OTHERS)
    for value in twin.graph.inputs:
        if value.shape is None:
            continue
        sizes: list[int | str | None] = []
        for axis, size in enumerate(value.shape):
            if isinstance(size, int):
                sizes.append(size)
                continue
            number = numbers.get(size.value) if size.value else None
            if number is None:
                number = _FIRST_AXIS if axis == 0 else next(others, _OTHERS[-1])
            if size.value:
                numbers[size.value] = number
            sizes.append(number)
        value.shape = ir.Shape(sizes)
    return twin

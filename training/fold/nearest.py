"""Along which axes could a tensor be stored, where no operator next to it tells? As the nearest one that does.

A map of one number works along any axis, but its neighbours do not: behind `[N, 1, H, W] * 0.5` a Concat may put
channels together that a convolution reads. This is the walk of reach.py once more, from both ends of every linear
operator at once, so that a tensor is reached first from where the fewest operators are in between. What was reached
in earnest stays where it is. Remembers axes, and nothing of what the operators say. Knows no operator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import onnx_ir as ir

from training.fold.known import Known, Rule
from training.fold.linear import native_axes
from training.fold.reach import Reach, Reached


def nearest_axes(
    rules: Mapping[str, Rule], known: Known, reached: Reached, nodes: Iterable[ir.Node]
) -> Callable[[ir.Value], tuple[int, ...] | None]:
    """By tensor; None where no linear operator among `nodes` is connected to it by operators that carry a gauge."""
    tried = Reached(dict(reached.ports))
    walk = Reach(rules, replace(known, axes_of=tried.axes_of), tried)
    for node in nodes:
        for value in (*node.inputs, *node.outputs):
            axes = None if value is None else native_axes(node, value, known)
            if value is not None and axes is not None:
                walk.start(node, value, axes)
    walk.run()
    return tried.axes_of

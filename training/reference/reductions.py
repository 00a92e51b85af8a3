"""Reductions, ArgMax, ArgMin, CumSum and TopK."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from training.reference.op import Array, Op, OperatorFunction, Result


def _reduction(function: Callable[..., Any]) -> OperatorFunction:
    """Axes: an attribute, then an input (ReduceSum from 13, others from 18); empty means all, or none on request: then
    each element is reduced by itself, its sum of squares is its square."""

    def reduce(op: Op, x: Array, axes: Array | None = None) -> Array:
        given = op.get("axes", None) if axes is None else axes.ravel()
        which = tuple(int(axis) for axis in given) if given is not None else ()
        if not which and not op.get("noop_with_empty_axes", 0):
            which = tuple(range(x.ndim))
        return np.asarray(function(x, axis=which, keepdims=bool(op.get("keepdims", 1))))

    return reduce


def _arg(function: Callable[..., Any]) -> OperatorFunction:
    def arg(op: Op, x: Array) -> Array:
        axis = op.get("axis", 0)
        if op.get("select_last_index", 0):
            found = x.shape[axis] - 1 - function(np.flip(x, axis), axis=axis, keepdims=True)
        else:
            found = function(x, axis=axis, keepdims=True)
        return np.asarray(found if op.get("keepdims", 1) else np.squeeze(found, axis), dtype=np.int64)

    return arg


def top_k(op: Op, x: Array, k: Array | None = None) -> Result:
    """Sorted values and indices; equal values keep the lower index first, as the page asks."""
    axis, count = op.get("axis", -1), int(op.get("k", 0) if k is None else k.item())
    order = np.argsort(-x if op.get("largest", 1) else x, axis=axis, kind="stable")
    chosen = np.take(order, np.arange(count), axis=axis)
    return np.take_along_axis(x, chosen, axis=axis), chosen.astype(np.int64)


def cum_sum(op: Op, x: Array, axis: Array) -> Array:
    """Exclusive leaves the own element out; reverse sums from the end."""
    where = int(axis.item())
    source = np.flip(x, where) if op.get("reverse", 0) else x
    total = np.cumsum(source, axis=where)
    total = total - source if op.get("exclusive", 0) else total
    return np.flip(total, where) if op.get("reverse", 0) else total


def _log_sum_exp(x: Array, **where: Any) -> Array:
    high = x.max(axis=where["axis"], keepdims=True)
    total = np.log(np.exp(x - high).sum(axis=where["axis"], keepdims=True)) + high
    return np.asarray(total if where["keepdims"] else total.squeeze(where["axis"]))


REDUCTIONS: dict[str, OperatorFunction] = {
    "ReduceSum": _reduction(np.sum),
    "ReduceMean": _reduction(np.mean),
    "ReduceMax": _reduction(np.max),
    "ReduceMin": _reduction(np.min),
    "ReduceProd": _reduction(np.prod),
    "ReduceL1": _reduction(lambda x, **where: np.abs(x).sum(**where)),
    "ReduceL2": _reduction(lambda x, **where: np.sqrt((x * x).sum(**where))),
    "ReduceSumSquare": _reduction(lambda x, **where: (x * x).sum(**where)),
    "ReduceLogSum": _reduction(lambda x, **where: np.log(x.sum(**where))),
    "ReduceLogSumExp": _reduction(_log_sum_exp),
    "ArgMax": _arg(np.argmax),
    "ArgMin": _arg(np.argmin),
    "TopK": top_k,
    "CumSum": cum_sum,
}

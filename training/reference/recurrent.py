"""RNN, GRU and LSTM of every version, in one, the other, or both directions.

https://onnx.ai/onnx/operators/onnx__LSTM.html, onnx__GRU.html, onnx__RNN.html; the formulas are those of the pages, and
so are the letters: H hidden state, C cell state, W and R weights of input and recurrence, P peepholes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from training.reference.elementwise import f32, sigmoid
from training.reference.op import Array, Op, OperatorFunction, Result

Function = Callable[[Array], Array]
State = tuple[Array, ...]  # H, and for LSTM C, each [batch, hidden]


@dataclass(frozen=True)
class _Direction:
    """One direction's share of the operands: `w` [gates * hidden, input], `r` [gates * hidden, hidden], `b` [2, ..]."""

    w: Array
    r: Array
    b: Array
    p: Array  # [3, hidden]
    functions: tuple[Function, ...]
    clip: Function


Step = Callable[[Op, _Direction, Array, State], State]


def _rnn(_: Op, d: _Direction, x: Array, state: State) -> State:
    (f,) = d.functions
    return (f(d.clip(x + state[0] @ d.r.T + d.b[1])),)


def _gru(op: Op, d: _Direction, x: Array, state: State) -> State:
    (h,), (f, g) = state, d.functions
    (xz, xr, xh), (rz, rr, rh), (bz, br, bh) = (np.split(part, 3, axis=-1) for part in (x, d.r.T, d.b[1]))
    z = f(d.clip(xz + h @ rz + bz))
    reset = f(d.clip(xr + h @ rr + br))
    if op.get("linear_before_reset", 0):
        candidate = g(d.clip(xh + reset * (h @ rh + bh)))
    else:
        candidate = g(d.clip(xh + (reset * h) @ rh + bh))
    return ((1.0 - z) * candidate + z * h,)


def _lstm(op: Op, d: _Direction, x: Array, state: State) -> State:
    (h, c), (f, g, last) = state, d.functions
    i, o, forget, cell = np.split(x + h @ d.r.T + d.b[1], 4, axis=-1)
    i = f(d.clip(i + d.p[0] * c))
    forget = 1.0 - i if op.get("input_forget", 0) else f(d.clip(forget + d.p[2] * c))
    c = forget * c + i * g(d.clip(cell))
    return f(d.clip(o + d.p[1] * c)) * last(c), c


def _recurrent(gates: int, states: int, default: tuple[str, ...], step: Step) -> OperatorFunction:
    def run(
        op: Op,
        x: Array,
        w: Array,
        r: Array,
        b: Array | None = None,
        lengths: Array | None = None,
        *rest: Array | None,
    ) -> Result:
        """`x` [time, batch, input]; with `layout=1` the batch comes first, in `x`, the states and the outputs."""
        first = bool(op.get("layout", 0))
        initial, peepholes = rest[:states], (*rest[states:], None)[0]
        x = x.swapaxes(0, 1) if first else x
        hidden, directions = r.shape[-1], w.shape[0]
        bias = np.zeros((directions, 2 * gates * hidden)) if b is None else b
        p = np.zeros((directions, 3 * hidden)) if peepholes is None else peepholes
        start = [_initial(states, initial, number, first, (x.shape[1], hidden)) for number in range(directions)]
        clip = _clip(op.get("clip"))
        lines, ends = [], []
        for number, functions in enumerate(_functions(op, default, directions)):
            split = bias[number].reshape(2, -1)
            d = _Direction(w[number], r[number], split, p[number].reshape(3, hidden), functions, clip)
            line, end = _walk(op, step, d, x, start[number], lengths, backwards=_is_backwards(op, number))
            lines.append(line)
            ends.append(end)
        y = np.stack(lines, axis=1)  # [time, direction, batch, hidden]
        last = [np.stack(parts) for parts in zip(*ends, strict=True)]  # [direction, batch, hidden]
        return (y.transpose(2, 0, 1, 3) if first else y), *(part.swapaxes(0, 1) if first else part for part in last)

    return run


def _walk(
    op: Op, step: Step, d: _Direction, x: Array, state: State, lengths: Array | None, *, backwards: bool
) -> tuple[Array, State]:
    """All steps of one direction. Beyond a sample's length the output is zero and the state stays."""
    projected = x @ d.w.T + d.b[0]
    y = np.zeros((x.shape[0], x.shape[1], d.r.shape[1]))
    for time in reversed(range(x.shape[0])) if backwards else range(x.shape[0]):
        after = step(op, d, projected[time], state)
        if lengths is not None:
            runs = (time < lengths)[:, np.newaxis]
            after = tuple(np.where(runs, new, old) for new, old in zip(after, state, strict=True))
            y[time] = np.where(runs, after[0], 0.0)
        else:
            y[time] = after[0]
        state = after
    return y, state


def _initial(
    states: int, given: Sequence[Array | None], number: int, batch_first: bool, shape: tuple[int, int]
) -> State:
    """H, and C where there is one; zeros where it is not given."""
    padded = (*given, *(None,) * states)[:states]
    return tuple(
        np.zeros(shape) if array is None else (array[:, number] if batch_first else array[number]) for array in padded
    )


def _is_backwards(op: Op, number: int) -> bool:
    direction = op.get("direction", "forward")
    return bool(direction == "reverse" or (direction == "bidirectional" and number == 1))


def _clip(bound: float | None) -> Function:
    """Of what goes into an activation."""
    return (lambda x: x) if bound is None else (lambda x: np.clip(x, -bound, bound))


# Name to function and the defaults of its alpha and beta, as many as it has.
_ACTIVATIONS: dict[str, tuple[Callable[..., Array], tuple[float, ...]]] = {
    "sigmoid": (sigmoid, ()),
    "tanh": (np.tanh, ()),
    "relu": (lambda x: np.maximum(x, 0.0), ()),
    "softsign": (lambda x: x / (1.0 + np.abs(x)), ()),
    "softplus": (lambda x: np.logaddexp(x, 0.0), ()),
    "elu": (lambda x, a: np.where(x < 0, a * np.expm1(np.minimum(x, 0.0)), x), (1.0,)),
    "leakyrelu": (lambda x, a: np.where(x < 0, a * x, x), (f32(0.01),)),
    "thresholdedrelu": (lambda x, a: np.where(x > a, x, 0.0), (1.0,)),
    "affine": (lambda x, a, b: a * x + b, (1.0, 0.0)),
    "hardsigmoid": (lambda x, a, b: np.clip(a * x + b, 0.0, 1.0), (f32(0.2), 0.5)),
    "scaledtanh": (lambda x, a, b: a * np.tanh(b * x), (1.0, 1.0)),
}


def _functions(op: Op, default: tuple[str, ...], directions: int) -> Iterator[tuple[Function, ...]]:
    """Each direction's activations. Those with an alpha or beta take the next number of the attribute's list."""
    names = list(op.get("activations") or default * directions)
    alphas, betas = iter(op.get("activation_alpha") or ()), iter(op.get("activation_beta") or ())
    bound = []
    for name in names:
        function, defaults = _ACTIVATIONS[name.lower()]
        parameters = [next(source, value) for source, value in zip((alphas, betas), defaults, strict=False)]
        bound.append(_with(function, parameters))
    for start in range(0, len(bound), len(default)):
        yield tuple(bound[start : start + len(default)])


def _with(function: Callable[..., Array], parameters: list[float]) -> Function:
    return lambda x: function(x, *parameters)


RECURRENT: dict[str, OperatorFunction] = {
    "RNN": _recurrent(1, 1, ("Tanh",), _rnn),
    "GRU": _recurrent(3, 1, ("Sigmoid", "Tanh"), _gru),
    "LSTM": _recurrent(4, 2, ("Sigmoid", "Tanh", "Tanh"), _lstm),
}

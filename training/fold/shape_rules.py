"""What is obvious about an operator's output, where ONNX's own inference says nothing.

It says nothing before opset 6 for most operators, behind an operator that it does not know, and in a graph that it
finds at odds with itself. A rule gives the output's sizes from the operands': an int, a symbol's name, or None. Rules
that do not know return None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

Sizes = tuple[int | str | None, ...]
Operands = Sequence[Sizes | None]
Rule = Callable[[ir.Node, Operands], Sizes | None]


def _as_first(_: ir.Node, operands: Operands) -> Sizes | None:
    return operands[0]


def _broadcast(node: ir.Node, operands: Operands) -> Sizes | None:
    """NumPy's; with `broadcast` or `axis`, which end with opset 6, B has to fit A."""
    if "axis" in node.attributes or "broadcast" in node.attributes:
        return operands[0]
    if any(sizes is None for sizes in operands):
        return None
    shapes = [sizes for sizes in operands if sizes is not None]
    rank = max(map(len, shapes))
    columns = zip(*((1,) * (rank - len(sizes)) + sizes for sizes in shapes), strict=True)
    return tuple(_common(column) for column in columns)


def _common(sizes: Sequence[int | str | None]) -> int | str | None:
    """The size that all of these broadcast to."""
    wide = {size for size in sizes if size != 1}
    numbers = {size for size in wide if isinstance(size, int)}
    if not wide:
        return 1
    if len(numbers) == 1:
        return next(iter(numbers))  # whatever the others are, they are this or 1
    return next(iter(wide)) if len(wide) == 1 else None


def _convolution(node: ir.Node, operands: Operands) -> Sizes | None:
    x, weight = (*operands, None, None)[:2]
    known = weight or x
    if known is None:
        return None
    batch = x[0] if x else None
    channels = weight[0] if weight else None
    if node.op_type == "ConvTranspose" and weight:
        group = node.attributes.get_int("group", 1)
        channels = weight[1] * group if isinstance(weight[1], int) else None
    return (batch, channels, *(None,) * (len(known) - 2))


def _pool(_: ir.Node, operands: Operands) -> Sizes | None:
    x = operands[0]
    return None if x is None else (*x[:2], *(None,) * (len(x) - 2))


def _global_pool(_: ir.Node, operands: Operands) -> Sizes | None:
    x = operands[0]
    return None if x is None else (*x[:2], *(1,) * (len(x) - 2))


def _same_rank(_: ir.Node, operands: Operands) -> Sizes | None:
    x = operands[0]
    return None if x is None else (None,) * len(x)


def _concat(node: ir.Node, operands: Operands) -> Sizes | None:
    """The default axis is opset 1's. Along the others all sizes are equal."""
    shapes = [sizes for sizes in operands if sizes is not None]
    ranks = {len(sizes) for sizes in shapes}
    if len(ranks) != 1:
        return None
    rank = ranks.pop()
    axis = node.attributes.get_int("axis", 1) % rank
    along = [sizes[axis] for sizes in shapes]
    numbers = [size for size in along if isinstance(size, int)]
    total = sum(numbers) if len(numbers) == len(operands) else None
    others = [next((s[i] for s in shapes if isinstance(s[i], int)), shapes[0][i]) for i in range(rank)]
    return tuple(total if i == axis else size for i, size in enumerate(others))


def _gemm(node: ir.Node, operands: Operands) -> Sizes | None:
    a, b = (*operands, None, None)[:2]
    rows = a[node.attributes.get_int("transA", 0)] if a else None
    columns = b[1 - node.attributes.get_int("transB", 0)] if b else None
    return rows, columns


def _matmul(node: ir.Node, operands: Operands) -> Sizes | None:
    a, b = (*operands, None, None)[:2]
    if a is None or b is None or len(a) < 2 or len(b) < 2:
        return None
    if isinstance(a[-1], int) and isinstance(b[-2], int) and a[-1] != b[-2]:
        return None
    lead = _broadcast(node, [a[:-2], b[:-2]])
    return None if lead is None else (*lead, a[-2], b[-1])


def _transpose(node: ir.Node, operands: Operands) -> Sizes | None:
    x = operands[0]
    if x is None:
        return None
    permutation = node.attributes.get_ints("perm", tuple(range(len(x)))[::-1])
    return tuple(x[axis] for axis in permutation)


def _reshape(node: ir.Node, operands: Operands) -> Sizes | None:
    x, sizes = operands[0], _integers(node, "shape", 1)
    if sizes is None:
        count = operands[1][0] if len(operands) > 1 and operands[1] else None
        return (None,) * count if isinstance(count, int) else None
    copied = () if x is None or "allowzero" in node.attributes else x
    return tuple(
        size if size > 0 else copied[axis] if size == 0 and axis < len(copied) else None
        for axis, size in enumerate(sizes)
    )


def _squeeze(node: ir.Node, operands: Operands) -> Sizes | None:
    """With an empty list of axes ONNX keeps all, ONNX Runtime none of size 1."""
    x, axes = operands[0], _integers(node, "axes", 1)
    if not x or not axes:
        return None
    gone = {axis % len(x) for axis in axes}
    return tuple(size for axis, size in enumerate(x) if axis not in gone)


def _unsqueeze(node: ir.Node, operands: Operands) -> Sizes | None:
    x, axes = operands[0], _integers(node, "axes", 1)
    if x is None or axes is None:
        return None
    rank = len(x) + len(axes)
    new, old = {axis % rank for axis in axes}, iter(x)
    return tuple(1 if axis in new else next(old) for axis in range(rank))


def _reduce(node: ir.Node, operands: Operands) -> Sizes | None:
    """Without axes all go; with none in them it depends on the opset."""
    x, axes = operands[0], _integers(node, "axes", 1)
    if not x or axes == [] or (axes is None and len(operands) > 1) or "noop_with_empty_axes" in node.attributes:
        return None
    gone = {axis % len(x) for axis in (range(len(x)) if axes is None else axes)}
    if node.attributes.get_int("keepdims", 1) != 0:
        return tuple(1 if axis in gone else size for axis, size in enumerate(x))
    return tuple(size for axis, size in enumerate(x) if axis not in gone)


def _integers(node: ir.Node, name: str, operand: int) -> list[int] | None:
    """What older opsets say in an attribute and newer ones in a constant operand; None where it is computed."""
    if name in node.attributes:
        return list(node.attributes[name].as_ints())
    value = node.inputs[operand] if len(node.inputs) > operand else None
    tensor = None if value is None or value.is_graph_input() else ir.convenience.get_const_tensor(value)
    return None if tensor is None else [int(number) for number in tensor.numpy().ravel()]


_KEEP_THE_SHAPE = (
    "Abs BatchNormalization Cast CastLike Ceil Celu Clip Cos CumSum DequantizeLinear Dropout Elu Erf Exp Floor Gelu "
    "GroupNormalization HardSigmoid HardSwish Hardmax Identity InstanceNormalization LRN LayerNormalization LeakyRelu "
    "Log LogSoftmax LpNormalization MeanVarianceNormalization Mish Neg Not PRelu QuantizeLinear Reciprocal Relu Round "
    "Selu Shrink Sigmoid Sign Sin Softmax Softplus Softsign Sqrt Swish Tanh ThresholdedRelu"
)
RULES: dict[str, Rule] = {
    **dict.fromkeys(_KEEP_THE_SHAPE.split(), _as_first),
    **dict.fromkeys(("Add", "Div", "Max", "Mean", "Min", "Mul", "Pow", "Sub", "Sum", "Where"), _broadcast),
    **dict.fromkeys(("Conv", "ConvTranspose"), _convolution),
    **dict.fromkeys(("AveragePool", "LpPool", "MaxPool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool"), _global_pool),
    **dict.fromkeys(("Pad", "Resize", "Slice", "Tile", "Upsample"), _same_rank),
    "Concat": _concat,
    "Flatten": lambda *_: (None, None),
    "Gemm": _gemm,
    "MatMul": _matmul,
    **dict.fromkeys(("ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"), _reduce),
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
KEEPS_THE_TYPE = frozenset(RULES) - {"Cast", "CastLike", "DequantizeLinear", "QuantizeLinear", "Where"}

"""A float32 graph in float16 or bfloat16: weights, values, inputs and outputs; and the proof that it still answers.

Folding comes before: the weights are then rounded to half once, from float32. Promises: where ONNX knows an operator
in float32 only (Resize's scales, NonMaxSuppression), its operands stay float32 and Casts stand around it; what does not
fit is refused by name. Knows ONNX's operator schemas and no file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from training import verify as proof
from training.algebra import Algebra
from training.errors import UserError
from training.reference import float_format
from training.reference.op import Array
from training.samples import Sample

TYPES: Mapping[str, ir.DataType] = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}

ERROR_UNITS = 64.0
"""How far the answers of the half graph may be from the float64 oracle of the float32 one: root mean square, in unit
roundoffs of the type, relative to the root mean square of the answers. Each operator rounds its result, so that errors
of one unit add up like a random walk: 64 units are room for some four thousand operators (3 % in float16). A weight
that was lost or a value that overflowed moves answers by far more.

Measured on what a GPU does: float32 inside each operator, its result rounded to half. ONNX Runtime's CPU kernels leave
most of these roundings out, and would show neither overflow nor cancellation."""

_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")
_FLOAT = int(ir.DataType.FLOAT)
_UNBOUNDED = float(np.finfo(np.float32).max)


class HalfRefused(UserError):
    """The graph has something that half precision cannot hold, or that ONNX does not define for it."""


class HalfDiffers(UserError):
    """The half graph does not answer as the float32 one does."""


@dataclass(frozen=True, slots=True)
class HalfReport:
    """`error` and `bound`: root mean square over that of the answers, of the worst output. `algebra_error` is as in the
    fold's proof. `note` says why ONNX Runtime does not run the file on the CPU, where it does not."""

    dtype: str
    algebra_error: float
    error: float
    bound: float
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def as_text(self) -> str:
        return (
            f"{self.dtype}: the same function (algebra {self.algebra_error:.2g}); answers are {self.error:.2g} of "
            f"their own size from float32's oracle (at most {self.bound:.2g}){self.note and f'; note: {self.note}'}"
        )


def to_half(model: ir.Model, dtype: ir.DataType) -> ir.Model:
    """A copy of `model` in which every float32 tensor is `dtype`. Raises HalfRefused."""
    if model.functions:
        function = next(iter(model.functions.values()))
        raise HalfRefused(f"local function {function.name!r}: half precision is made of graphs without functions")
    half = model.clone()
    if any(value.dtype is None for graph in half.graphs() for node in graph for value in node.outputs if value.name):
        half = ShapeInferencePass()(half).model
    names = _Names(half)
    for graph in half.graphs():
        _cast_graph(graph, dtype, half.opset_imports, names)
    for graph in half.graphs():  # last: readers that stay float32 needed the unrounded numbers
        _round_initializers(graph, dtype)
    return half


def judge(single: ir.Model, half: ir.Model, samples: Sequence[Mapping[str, Array]], dtype: ir.DataType) -> HalfReport:
    """Prove that `half` answers as `single` does, on inputs that are rounded to half first, for both.

    Raises HalfDiffers; CannotMakeSamples or UnsupportedOperator as the proof of a fold does.
    """
    kind = dtype.numpy()
    bound = ERROR_UNITS * float_format(kind).eps / 2
    rounded = [
        Sample({n: a.astype(kind).astype(np.float32) if a.dtype == np.float32 else a for n, a in s.items()}, "sample")
        for s in samples
    ]
    algebra, worst, expected = Algebra(single, half), 0.0, []
    for sample in rounded:
        expected.append(algebra.expected(sample))
        for finding in algebra.judge(sample, expected[-1]):
            worst = max(worst, finding.relative)
            if not finding.holds:
                raise HalfDiffers(
                    f"output {finding.output!r} differs in {dtype.name}: error {finding.error:.3g} where rounding the "
                    f"weights explains {finding.tolerance:.3g}; a weight or a constant is too small or too large for it"
                )
    emulation = _emulated(half, dtype)
    answers = [proof.run(emulation, sample) for sample in rounded]
    off = max(_error(name, [e[name] for e in expected], [a[name] for a in answers], dtype) for name in expected[0])
    if not off <= bound:
        raise HalfDiffers(
            f"in {dtype.name} the answers are {off:.2g} of their own size from float32's oracle (root mean square), "
            f"more than the {bound:.2g} allowed; export it in float32"
        )
    try:
        proof.run(half, rounded[-1])
    except UserError as error:
        return HalfReport(dtype.name, worst, off, bound, str(error))
    return HalfReport(dtype.name, worst, off, bound)


def _error(name: str, expected: Sequence[Array], answers: Sequence[Array], dtype: ir.DataType) -> float:
    """Root mean square over root mean square; decisions (integers, bools) are not judged: they may be close calls."""
    oracle = np.concatenate([array.ravel() for array in expected])
    answer = np.concatenate([array.ravel() for array in answers])
    if oracle.dtype.kind != "f":
        return 0.0
    lost = np.isfinite(oracle) & ~np.isfinite(answer.astype(np.float64))
    if lost.any():
        raise HalfDiffers(
            f"output {name!r}: {int(lost.sum())} of {lost.size} numbers overflow in {dtype.name}; export it in float32"
        )
    finite = np.isfinite(oracle)
    size = float(np.sqrt(np.mean(oracle[finite] ** 2))) if finite.any() else 0.0
    off = float(np.sqrt(np.mean((answer[finite].astype(np.float64) - oracle[finite]) ** 2))) if finite.any() else 0.0
    return off / size if size else off


# --- the pass -----------------------------------------------------------------------------------------------------


class _Names:
    """Names that no value of the model bears yet, for values and nodes."""

    def __init__(self, model: ir.Model) -> None:
        self._taken = {
            value.name for graph in model.graphs() for value in (*graph.inputs, *graph.initializers.values())
        }
        for node in (node for graph in model.graphs() for node in graph):
            self._taken |= {node.name, *(value.name for value in node.outputs)}

    def new(self, value: ir.Value, suffix: str) -> str:
        name = f"{value.name}_{suffix}"
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def _cast_graph(graph: ir.Graph, dtype: ir.DataType, opsets: Mapping[str, int], names: _Names) -> None:
    for value in (*graph.inputs, *graph.initializers.values()):
        _retype(value, ir.DataType.FLOAT, dtype)
    kept: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        schema = _schema(node, opsets)
        _retype_attributes(node, schema, ir.DataType.FLOAT, dtype)
        stays = set(_float32_only(schema, dtype))
        for i, (operand, formal) in enumerate(zip(node.inputs, _formals(schema.inputs, len(node.inputs)), strict=True)):
            if operand is not None and formal in stays and _element(operand) is dtype:
                node.replace_input_with(i, _kept_float32(operand, node, kept, names))
        for output, formal in zip(node.outputs, _formals(schema.outputs, len(node.outputs)), strict=True):
            if formal not in stays:
                _retype(output, ir.DataType.FLOAT, dtype)
            elif _element(output) is ir.DataType.FLOAT:
                _cast_behind(output, dtype, names)


def _emulated(half: ir.Model, dtype: ir.DataType) -> ir.Model:
    """`half` in float32, with the result of each operator rounded to `dtype` by a Cast there and a Cast back."""
    model = half.clone()
    names = _Names(model)
    for graph in model.graphs():
        for value in (*graph.inputs, *graph.initializers.values()):
            _retype(value, dtype, ir.DataType.FLOAT)
            if value.const_value is not None and value.const_value.dtype is dtype:
                value.const_value = _widened(value.const_value)
        for node in list(graph):
            _retype_attributes(node, _schema(node, model.opset_imports), dtype, ir.DataType.FLOAT)
            for output in node.outputs:
                rounds = isinstance(output.type, ir.TensorType) and output.dtype is dtype
                _retype(output, dtype, ir.DataType.FLOAT)
                if rounds:
                    _cast_behind(_cast_behind(output, dtype, names), ir.DataType.FLOAT, names)
    return model


def _widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(tensor.numpy().astype(np.float32), dtype=ir.DataType.FLOAT, name=tensor.name)


def _round_initializers(graph: ir.Graph, dtype: ir.DataType) -> None:
    for name, value in list(graph.initializers.items()):
        if value.const_value is None or value.const_value.dtype is not ir.DataType.FLOAT or value.dtype is not dtype:
            continue
        if value.uses() or value.is_graph_output() or value.is_graph_input():
            value.const_value = _rounded(value.const_value, dtype, f"initializer {name!r}")
        else:
            del graph.initializers[name]  # all its readers stay float32


def _schema(node: ir.Node, opsets: Mapping[str, int]) -> onnx.defs.OpSchema:
    try:
        return onnx.defs.get_schema(node.op_type, node.version or opsets.get(node.domain, 1), node.domain)
    except onnx.defs.SchemaError as error:
        raise HalfRefused(
            f"node {node.name!r}: operator {node.op_type!r} of domain {node.domain!r} has no schema that says whether "
            f"it works in half precision"
        ) from error


def _float32_only(schema: onnx.defs.OpSchema, dtype: ir.DataType) -> Iterator[str]:
    """The schema's types, by variable or as written, that hold float32 but not `dtype`."""
    wanted = f"tensor({dtype.name.lower()})"
    variables = {constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints}
    for formal in (*schema.inputs, *schema.outputs):
        allowed = variables.get(formal.type_str, [formal.type_str])
        if "tensor(float)" in allowed and wanted not in allowed:
            yield formal.type_str


def _formals(formals: Sequence[Any], count: int) -> list[str]:
    """One type a value: the last formal stands for all that follow (Concat, If)."""
    names = [formal.type_str for formal in formals]
    return (names + names[-1:] * (count - len(names)))[:count]


def _retype_attributes(node: ir.Node, schema: onnx.defs.OpSchema, old: ir.DataType, new: ir.DataType) -> None:
    """Attributes that say `old`: a type to make or to cast to, or constants."""
    what = f"node {node.name!r} ({node.op_type})"
    for name in _TYPE_ATTRIBUTES:
        formal = schema.attributes.get(name)
        default = formal.default_value.i if formal is not None and formal.default_value is not None else None
        attribute = node.attributes.get(name)
        if (default if attribute is None else attribute.value) == int(old):
            node.attributes.add(ir.AttrInt64(name, int(new)))
    for name in ("value", "value_float", "value_floats"):
        attribute = node.attributes.get(name)
        if attribute is None or node.op_type not in ("Constant", "ConstantOfShape"):
            continue
        tensor = attribute.value if name == "value" else ir.tensor(np.asarray(attribute.value, np.float32))
        if tensor.dtype is old:
            node.attributes.pop(name)
            made = _widened(tensor) if new is ir.DataType.FLOAT else _rounded(tensor, new, what)
            node.attributes.add(ir.AttrTensor("value", made))
    if node.op_type == "ConstantOfShape" and "value" not in node.attributes:  # float32 zeros, says the operator's page
        node.attributes.add(ir.AttrTensor("value", ir.tensor(np.zeros(1, new.numpy()), dtype=new)))


def _kept_float32(operand: ir.Value, reader: ir.Node, kept: dict[ir.Value, ir.Value], names: _Names) -> ir.Value:
    """`operand` in float32 for a reader that takes nothing else: a constant unrounded, a computed value cast back."""
    if operand in kept:
        return kept[operand]
    graph = reader.graph
    assert isinstance(graph, ir.Graph)
    if operand.const_value is not None and operand.const_value.dtype is ir.DataType.FLOAT:
        name = names.new(operand, "float32")
        value = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=operand.shape)
        value.const_value = ir.Tensor(operand.const_value.numpy(), dtype=ir.DataType.FLOAT, name=name)
        graph.register_initializer(value)
    else:
        cast = ir.node("Cast", [operand], {"to": _FLOAT}, name=names.new(operand, "to_float32"))
        value = cast.outputs[0]
        value.name, value.shape = names.new(operand, "float32"), operand.shape
        value.type = ir.TensorType(ir.DataType.FLOAT)
        graph.insert_before(reader, cast)
    kept[operand] = value
    return value


def _cast_behind(output: ir.Value, dtype: ir.DataType, names: _Names) -> ir.Value:
    """The node goes on making what it makes; who reads it reads a Cast of it, under its name."""
    node = output.producer()
    assert node is not None
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    cast = ir.node("Cast", [output], {"to": int(dtype)}, name=names.new(output, f"to_{dtype.name.lower()}"))
    value = cast.outputs[0]
    value.type, value.shape = ir.TensorType(dtype), output.shape
    output.replace_all_uses_with(value, replace_graph_outputs=True)
    cast.replace_input_with(0, output)
    value.name, output.name = output.name, names.new(output, f"before_{dtype.name.lower()}")
    graph.insert_after(node, cast)
    return value


def _element(value: ir.Value) -> ir.DataType | None:
    if value.dtype is None:
        raise HalfRefused(f"value {value.name!r} has no known type; the operator that reads it works in float32 only")
    return value.dtype


def _retype(value: ir.Value, old: ir.DataType, new: ir.DataType) -> None:
    """`old`, also as a sequence's element, becomes `new`."""
    if value.dtype is not old or value.type is None:
        return
    tensor = ir.TensorType(new)
    if isinstance(value.type, ir.TensorType):
        value.type = tensor
    elif isinstance(value.type, ir.SequenceType) and isinstance(value.type.elem_type, ir.TensorType):
        value.type = ir.SequenceType(tensor)
    else:
        raise HalfRefused(f"value {value.name!r} is {value.type}; expected tensors, or sequences of them")


def _rounded(tensor: ir.TensorProtocol, dtype: ir.DataType, what: str) -> ir.TensorProtocol:
    """Rounded once. float32's own largest numbers mean "no limit" or "masked", and become the type's own largest.

    Raises HalfRefused for any other number beyond it.
    """
    numbers = np.asarray(tensor.numpy(), np.float32)
    form = float_format(dtype.numpy())
    with np.errstate(over="ignore"):
        rounded = numbers.astype(dtype.numpy())
    lost = np.isinf(rounded.astype(np.float32)) & np.isfinite(numbers)
    unlimited = np.abs(numbers) == np.float32(_UNBOUNDED)
    if (lost & ~unlimited).any():
        worst = float(numbers[lost & ~unlimited].flat[0])
        raise HalfRefused(f"{what} holds {worst:.6g}, but {dtype.name} ends at {form.max:.6g}; export it in float32")
    limits = (np.sign(numbers) * form.max).astype(dtype.numpy())
    return ir.Tensor(np.where(lost & unlimited, limits, rounded), dtype=dtype, name=tensor.name)

"""What ONNX's own reference makes of constants, for operators that constant_operators.py has no function for.

One node at a time, of the default domain, whose operands are all constants: softmax of architecture weights, the error
function of a parameter, a triangular mask; of each operator it is tested that a run time answers alike. Floating-point
operands are widened to float64 and the results stay unrounded, as everywhere in a chain.

Not evaluated: what is random, runs subgraphs, or gives something else than tensors of numbers; layers; what quantises,
whose result somebody wants quantised; what would be large, or take long in onnx.reference, some of whose operators are
loops in Python; operators of an older version than onnx.reference knows. Sizes are looked at before anything is
computed.

onnx.reference is imported when it is first needed. Knows one node at a time, remembers nothing.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from training.fold.affine import Array
from training.fold.constant_operators import NUMBERS, Numbers, refused
from training.fold.graph import is_standard
from training.fold.weights import FLOAT_DTYPES, widen

_MOST_ELEMENTS = 1 << 22  # of one operand or result: a second of work where an element costs 0.25 us (Erf)
_MOST_LOOPED = 1 << 16  # where onnx.reference loops in Python: up to 10 us an element (Det)
_MOST_SUMMED = 1 << 30  # products of an Einsum: NumPy goes through all indices at once
_SHOWN_ELEMENTS = 64  # of an operand whose numbers may tell the size of a result
_FIRST_OPSET = 7  # before, broadcasting was another one

KNOWN = frozenset(
    {
        *("Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cos", "Cosh", "Sin", "Sinh", "Tan", "Tanh"),
        *("Celu", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mean", "Mish", "PRelu"),
        *("Selu", "Shrink", "Sigmoid", "Softplus", "Softsign", "Swish", "ThresholdedRelu"),
        *("Ceil", "Floor", "Mod", "Round", "Sign"),
        *("And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not", "Or", "Xor"),
        *("BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"),
        *("ArgMax", "ArgMin", "CumSum", "Hardmax", "LogSoftmax", "Softmax", "TopK"),
        *("ReduceL1", "ReduceLogSum", "ReduceLogSumExp", "GroupNormalization", "InstanceNormalization"),
        *("LayerNormalization", "RMSNormalization", "Det", "Einsum", "Gemm", "MatMul", "Dropout"),
        *("Compress", "DepthToSpace", "EyeLike", "GatherElements", "GatherND", "NonZero", "OneHot", "Pad"),
        *("ReverseSequence", "ScatterElements", "ScatterND", "Split", "Tile", "Trilu"),
    }
)
"""Those that are tested against a run time. Not layers: no weight is the output of one. Of LRN, a cubic Resize,
LpNormalization with p=1 and an unsorted Unique onnx.reference 1.23 has another idea than run times have."""

_LOOPS = frozenset({"Det", "GatherND", "ReverseSequence", "ScatterElements", "ScatterND"})
_NEVER_MORE = frozenset({"Compress", "GroupNormalization", "NonZero"})  # than they read: inference cannot tell


def why_not(node: ir.Node, opset: int | None) -> str:
    """Why `node` is not evaluated here, whatever its operands; empty where it may be."""
    if not is_standard(node) or opset is None or node.op_type not in KNOWN:
        return "it is no function of numbers that is known here"
    if any(attribute.is_ref() for attribute in node.attributes.values()):
        return "it is part of a function"
    if not _is_as_today(node.op_type, opset):
        return f"opset {opset} means something else by it than onnx.reference does"
    return ""


def evaluate(node: ir.Node, operands: Sequence[Numbers | None], opset: int) -> tuple[Numbers | None, ...]:
    """The node's outputs, None for one that is not asked for.

    Raises NotConstant, with the reason, where ONNX's inference does not take the operands, the outputs are not numbers,
    something is too large, or onnx.reference fails, contradicts the inference, or makes infinities of finite numbers:
    it takes the logarithm of a softmax that is 0 by then.
    """
    if node.op_type == "Dropout" and not _is_idle(operands):
        raise refused(node, "which is random in training mode")
    if node.op_type == "TopK" and node.attributes.get_int("sorted", 1) == 0:
        raise refused(node, "whose order is open")
    declared = _inferred(node, operands, opset)
    _check_work(node, operands, declared)
    arrays = [None if numbers is None else _fed(numbers) for numbers in operands]
    answers = iter(_answers(node, arrays, opset))
    found = tuple(None if one is None else _numbers(node, one, next(answers)) for one in declared)
    if all(map(_is_finite, arrays)) and not all(numbers is None or _is_finite(numbers.array) for numbers in found):
        raise refused(node, "which onnx.reference does not answer with finite numbers")
    return found


@dataclass(frozen=True)
class _Declared:
    """An output as ONNX's inference sees it. `shape`: None where inference cannot tell."""

    kind: np.dtype[np.generic]
    shape: tuple[int, ...] | None


def _is_idle(operands: Sequence[Numbers | None]) -> bool:
    """Is a Dropout's training_mode off?"""
    mode = operands[2] if len(operands) > 2 else None
    return mode is None or not mode.array.any()


def _is_finite(array: Array | None) -> bool:
    return array is None or array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _fed(numbers: Numbers) -> Array:
    """A copy that may be written into."""
    return np.array(widen(numbers.array) if numbers.is_float else numbers.array)


# --- Before anything is computed: types and sizes --------------------------------------------------------------------


def _inferred(node: ir.Node, operands: Sequence[Numbers | None], opset: int) -> list[_Declared | None]:
    """What inference says of each output. It is shown small operands: axes and sizes are among them."""
    kinds = [None if numbers is None else numbers.dtype for numbers in operands]
    shapes = [() if numbers is None else numbers.array.shape for numbers in operands]
    model = _one_node(node, kinds, shapes, opset)
    for place, numbers in enumerate(operands):
        if numbers is not None and numbers.array.size <= _SHOWN_ELEMENTS:
            shown = onnx.numpy_helper.from_array(np.array(numbers.rounded()), _operand_name(place))
            model.graph.initializer.append(shown)
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:  # of several kinds
        raise refused(node, f"which fails: {_in_a_line(error)}") from error
    found = {info.name: info.type.tensor_type for info in inferred.graph.output}
    return [_declared(node, found.get(_output_name(i))) for i, _ in enumerate(node.outputs)]


def _declared(node: ir.Node, found: onnx.TypeProto.Tensor | None) -> _Declared | None:
    if found is None:
        return None
    kind = NUMBERS.get(ir.DataType(found.elem_type))
    if kind is None:
        raise refused(node, "which gives no tensor of numbers")
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in found.shape.dim]
    known = found.HasField("shape") and None not in sizes
    return _Declared(kind, tuple(size for size in sizes if size is not None) if known else None)


def _check_work(node: ir.Node, operands: Sequence[Numbers | None], declared: Sequence[_Declared | None]) -> None:
    limit = _MOST_LOOPED if node.op_type in _LOOPS else _MOST_ELEMENTS
    shapes = [numbers.array.shape for numbers in operands if numbers is not None]
    for one in declared:
        if one is None:
            continue
        if one.shape is None and node.op_type not in _NEVER_MORE:
            raise refused(node, "whose size cannot be told before it is computed")
        shapes.append(one.shape or ())
    largest = max(map(math.prod, shapes), default=0)
    if largest > limit:
        raise refused(node, f"whose {largest} elements are not a weight")
    if node.op_type == "Einsum" and _summed(node, shapes[: len(operands)]) > _MOST_SUMMED:
        raise refused(node, "which takes too many products")


def _summed(node: ir.Node, shapes: Sequence[tuple[int, ...]]) -> int:
    """Of an Einsum, how often its innermost product is taken; with "..." in it, a bound."""
    terms = node.attributes.get_string("equation", "").replace(" ", "").split("->")[0].split(",")
    if [len(term) for term in terms] != [len(shape) for shape in shapes]:
        return math.prod(map(math.prod, shapes))
    sizes = dict(zip("".join(terms), (size for shape in shapes for size in shape), strict=True))
    return math.prod(sizes.values())


# --- onnx.reference --------------------------------------------------------------------------------------------------


def _answers(node: ir.Node, arrays: Sequence[Array | None], opset: int) -> list[Array]:
    """The outputs that are asked for."""
    kinds = [None if array is None else array.dtype for array in arrays]
    model = _one_node(node, kinds, [() if array is None else array.shape for array in arrays], opset)
    feeds = {_operand_name(i): array for i, array in enumerate(arrays) if array is not None}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # infinities are what the run time gets too; folding then refuses them
        try:
            from onnx.reference import ReferenceEvaluator  # half a tenth of a second that most models do not need

            return [np.asarray(answer) for answer in ReferenceEvaluator(model).run(None, feeds)]
        except Exception as error:  # whatever its NumPy code raises
            raise refused(node, f"which fails: {_in_a_line(error)}") from error


def _numbers(node: ir.Node, declared: _Declared, answer: Array) -> Numbers:
    """Of a result with another shape or sort of type than was inferred, one of the two is wrong: not taken."""
    is_float = declared.kind in FLOAT_DTYPES
    of_its_sort = answer.dtype in FLOAT_DTYPES if is_float else answer.dtype == declared.kind
    if not of_its_sort or (declared.shape is not None and answer.shape != declared.shape):
        found = f"{answer.dtype}{list(answer.shape)}"
        raise refused(node, f"which onnx.reference answers with {found}, unlike what inference says")
    return Numbers(widen(answer) if is_float else answer, declared.kind)


def _one_node(
    node: ir.Node, kinds: Sequence[np.dtype[np.generic] | None], shapes: Sequence[tuple[int, ...]], opset: int
) -> onnx.ModelProto:
    """The node alone, between inputs of these types (None: not given) and outputs that are left open."""
    proto = ir.serde.serialize_node(node)  # `ir.to_proto` asks what it is given by eight protocols first
    names = ["" if kind is None else _operand_name(i) for i, kind in enumerate(kinds)]
    del proto.input[:], proto.output[:]
    proto.input.extend(names)
    proto.output.extend(_output_name(i) if output.name else "" for i, output in enumerate(node.outputs))
    inputs = [
        helper.make_tensor_value_info(name, int(ir.DataType.from_numpy(kind)), shape)
        for name, kind, shape in zip(names, kinds, shapes, strict=True)
        if kind is not None
    ]
    outputs = [helper.make_empty_tensor_value_info(name) for name in proto.output if name]
    graph = helper.make_graph([proto], "one_node", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def _operand_name(place: int) -> str:
    return f"operand_{place}"


def _output_name(place: int) -> str:
    return f"output_{place}"


def _in_a_line(error: Exception) -> str:
    return " ".join(f"{error}".split())[:200]


@cache
def _is_as_today(op_type: str, opset: int) -> bool:
    """Does the operator at `opset` have the interface of its newest version, but for options that came later?

    onnx.reference has mostly that one. Softmax before opset 13 is another function (all axes from the given one on are
    one), and its axis had another default; Split has got an option since, which changes nothing where it is not given.
    """
    try:
        then = onnx.defs.get_schema(op_type, opset, "")
        newest = onnx.defs.get_schema(op_type, "")
    except onnx.defs.SchemaError:
        return False
    if then.since_version == newest.since_version:
        return True
    if opset < _FIRST_OPSET or _interface(newest)[: len(then.inputs)] != _interface(then):
        return False
    attributes = {name: a.default_value.SerializeToString() for name, a in newest.attributes.items()}
    before = {name: a.default_value.SerializeToString() for name, a in then.attributes.items()}
    later = [newest.attributes[name] for name in attributes.keys() - before.keys()]
    is_kept = all(attributes.get(name) == default for name, default in before.items())
    return is_kept and not any(a.required or a.default_value.ByteSize() for a in later)


def _interface(schema: onnx.defs.OpSchema) -> list[tuple[str, str]]:
    return [(one.name, str(one.option)) for one in schema.inputs]

"""ONNX's shape inference, asked about a model: sizes and types of what its nodes compute.

The model is never annotated, and weights are shown by type and shape only. Lenient: what cannot be proved is missing,
not an error. Where ONNX Runtime is known to give other sizes than ONNX says, as at the last window of a pool with
`ceil_mode`, the size is missing too: a fold that believed it would be right on paper only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import TypeGuard

import numpy as np
import onnx
import onnx_ir as ir

from training.fold.edits import annotate
from training.fold.graph import is_standard
from training.fold.shape_rules import Sizes
from training.fold.tensors import Hollow

_LARGE_BYTES = 1024  # tensors above this are shown to inference by their type and shape only
_HIDDEN = "foldserve.hidden"  # a domain that inference knows nothing of


@dataclass(frozen=True)
class Learned:
    """What inference says of one value."""

    sizes: Sizes | None
    dtype: ir.DataType | None


def infer(model: ir.Model, twin: ir.Model) -> Iterator[tuple[ir.Value, Learned]]:
    """What ONNX's inference says of `model`'s node outputs, asked about a twin; nothing where it gives up."""
    learned = dict(_by_onnx(model, twin))
    doubted = {place: node for place, node in enumerate(model.graph) if _is_doubted(node, learned)}
    if doubted:
        kept = {place: learned.get(node.outputs[0]) for place, node in doubted.items() if node.op_type not in _RANK_TOO}
        learned = dict(_by_onnx(model, _hiding(twin, set(doubted), kept)))
    yield from learned.items()


def _hiding(model: ir.Model, places: set[int], kept: dict[int, Learned | None]) -> ir.Model:
    """A copy whose nodes at these places are operators that nobody knows; of those `kept`, type, rank, batch and
    channels are."""
    copy = model.clone()
    for place, node in enumerate(copy.graph):
        if place not in places:
            continue
        node.domain = _HIDDEN
        known = kept.get(place)
        for output in node.outputs:
            output.shape = None
        if known is not None and known.sizes is not None:
            annotate(node.outputs[0], known.dtype, [*known.sizes[:2], *(None,) * len(known.sizes[2:])])
    copy.opset_imports[_HIDDEN] = 1
    return copy


def _by_onnx(model: ir.Model, twin: ir.Model) -> Iterator[tuple[ir.Value, Learned]]:
    """What ONNX's inference says of node outputs, asked about a twin; nothing where it gives up."""
    try:
        with _numbers_hidden(twin):
            shown = ir.to_proto(twin)
        inferred = onnx.shape_inference.infer_shapes(shown, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError):  # an operator or a size that ONNX cannot judge
        return
    yield from _annotated(model.graph, inferred.graph)


def _annotated(graph: ir.Graph, proto: onnx.GraphProto) -> Iterator[tuple[ir.Value, Learned]]:
    """Names are unique within a graph; the graphs inside its nodes go node by node."""
    types = {info.name: info.type.tensor_type for info in (*proto.value_info, *proto.output)}
    for node, node_proto in zip(graph, proto.node, strict=True):
        for output in node.outputs:
            if output.name in types:
                yield output, _learned(types[output.name])
        bodies = {attribute.name: attribute.g for attribute in node_proto.attribute if attribute.HasField("g")}
        for attribute in node.attributes.values():
            if attribute.name in bodies and not attribute.is_ref():
                yield from _annotated(attribute.as_graph(), bodies[attribute.name])


def _learned(tensor: onnx.TypeProto.Tensor) -> Learned:
    dtype = ir.DataType(tensor.elem_type) if tensor.elem_type else None
    if not tensor.HasField("shape"):
        return Learned(None, dtype)
    sizes = (dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in tensor.shape.dim)
    return Learned(tuple(sizes), dtype)


@contextmanager
def _numbers_hidden(model: ir.Model) -> Iterator[None]:
    """Inference asks for the type and shape of large tensors only: for a while these have no data."""
    initializers = [value for graph in model.graphs() for value in graph.initializers.values()]
    large = [(value, value.const_value) for value in initializers if _is_large(value.const_value)]
    constants = [
        (node.attributes, attribute)
        for node in model.graph.all_nodes()
        if node.op_type == "Constant"
        for attribute in node.attributes.values()
        if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref() and _is_large(attribute.as_tensor())
    ]
    try:
        for value, tensor in large:
            value.const_value = Hollow(tensor)
        for attributes, attribute in constants:
            attributes.add(ir.AttrTensor(attribute.name, Hollow(attribute.as_tensor())))
        yield
    finally:
        for value, tensor in large:
            value.const_value = tensor
        for attributes, attribute in constants:
            attributes.add(attribute)


def tensors_of(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Initializers and the contents of Constant nodes."""
    for graph in model.graphs():
        yield from (value.const_value for value in graph.initializers.values() if value.const_value is not None)
        for node in graph:
            if node.op_type == "Constant":
                tensors = (a for a in node.attributes.values() if a.type == ir.AttributeType.TENSOR and not a.is_ref())
                yield from (attribute.as_tensor() for attribute in tensors)


def _is_large(tensor: ir.TensorProtocol | None) -> TypeGuard[ir.TensorProtocol]:
    return tensor is not None and tensor.dtype != ir.DataType.STRING and tensor.nbytes > _LARGE_BYTES


# Where ONNX Runtime 1.31 was seen to answer with other sizes than ONNX 1.23 infers, over all operators with a window, a
# scale or optional axes.


def _is_doubted(node: ir.Node, learned: dict[ir.Value, Learned]) -> bool:
    doubt = _DOUBTS.get(node.op_type) if is_standard(node) else None
    if doubt is None or not node.inputs or node.inputs[0] is None:
        return False
    x, y = (_spatial(value, learned) for value in (node.inputs[0], node.outputs[0]))
    return bool(doubt(node, x, y))


def _spatial(value: ir.Value, learned: dict[ir.Value, Learned]) -> Sizes:
    """Behind batch and channels; nothing where the rank is not known."""
    known = learned.get(value)
    if known is not None and known.sizes is not None:
        return known.sizes[2:]
    return () if value.shape is None else tuple(size if isinstance(size, int) else None for size in value.shape)[2:]


def _pool_is_doubted(node: ir.Node, x: Sizes, y: Sizes) -> bool:
    """A window that begins in the padding behind the data is none, whatever `ceil_mode` says."""
    rank, ceiling = len(x), node.attributes.get_int("ceil_mode", 0) == 1
    kernel, strides, dilations = (list(node.attributes.get_ints(name, [1] * rank)) for name in _WINDOW)
    if node.attributes.get_string("auto_pad", "NOTSET").startswith("SAME"):
        return ceiling or any(step != 1 for step in dilations)
    pads = list(node.attributes.get_ints("pads", [0] * 2 * rank))
    if not ceiling or not len(kernel) == len(strides) == len(dilations) == len(y) == rank or len(pads) != 2 * rank:
        return ceiling
    axes = zip(x, y, kernel, strides, dilations, pads[:rank], pads[rank:], strict=True)
    return any(
        isinstance(size, int) and found != _windows(size, (k - 1) * d + 1, s, begin, end)
        for size, found, k, s, d, begin, end in axes
    )


def _windows(size: int, span: int, stride: int, begin: int, end: int) -> int:
    count = ceil((size + begin + end - span) / stride) + 1
    return count - ((count - 1) * stride >= size + begin)


def _scaled_is_doubted(node: ir.Node, x: Sizes, y: Sizes) -> bool:
    """ONNX Runtime multiplies size and scale in float32: 5 times 1.4 is 7, where float64 is just below it."""
    scales = _scales(node)
    if scales is None or len(scales) != len(x) + 2:
        return False
    return any(
        isinstance(size, int) and isinstance(found, int) and int(np.float32(size) * scale) != found
        for size, found, scale in zip(x, y, scales[2:], strict=False)
    )


def _scales(node: ir.Node) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None:
    if "scales" in node.attributes:
        return np.asarray(node.attributes.get_floats("scales", ()), dtype=np.float32)
    place = 2 if node.op_type == "Resize" and len(node.inputs) > 2 else 1
    value = node.inputs[place] if place < len(node.inputs) else None
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None or tensor.dtype is not ir.DataType.FLOAT else tensor.numpy().reshape(-1)


def _transposed_is_doubted(node: ir.Node, _: Sizes, __: Sizes) -> bool:
    same = node.attributes.get_string("auto_pad", "NOTSET").startswith("SAME")
    return "output_shape" in node.attributes or (same and any(node.attributes.get_ints("output_padding", ())))


def _squeeze_is_doubted(node: ir.Node, _: Sizes, __: Sizes) -> bool:
    """Axes that are an empty list: all of size 1, or none?"""
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    tensor = None if axes is None else ir.convenience.get_const_tensor(axes)
    return tensor is not None and tensor.size == 0


_RANK_TOO = ("ConvTranspose", "Squeeze")  # here the rank is doubtful too
_WINDOW = ("kernel_shape", "strides", "dilations")
_DOUBTS: dict[str, Callable[[ir.Node, Sizes, Sizes], bool]] = {
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), _pool_is_doubted),
    **dict.fromkeys(("Resize", "Upsample"), _scaled_is_doubted),
    "ConvTranspose": _transposed_is_doubted,
    "Squeeze": _squeeze_is_doubted,
}

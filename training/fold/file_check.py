"""Is what a file holds a model? ONNX's checker and strict shape inference, and what those two do not look at.

Works on the container alone: tensors that fit their declared size, external data that stays in the model's folder,
nothing that onnx-ir would drop without a word. Reads no weight, folds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

_LARGE_BYTES = 1024  # initializers above this are shown to the checker by type and shape only
_BITS: dict[ir.DataType, int] = {
    t: t.bitwidth for t in ir.DataType if t not in (ir.DataType.UNDEFINED, ir.DataType.STRING)
}


class UnsoundFile(Exception):
    """What is wrong with a file, in one line; for what ONNX's own checker does not look at."""


def check_file(proto: onnx.ModelProto, folder: Path, cut: Sequence[int | None] = ()) -> None:
    """Raise if `proto`, read from a file in `folder`, cannot be trusted to be a model.

    `cut`: for each of the graph's initializers the number of bytes that it has in the file but not in `proto`, or None.

    Raises UnsoundFile, or the error of ONNX's checker or shape inference.
    """
    if not proto.HasField("graph") or not proto.ir_version:
        raise UnsoundFile("is not an ONNX model: it holds no graph")
    if proto.training_info:
        raise UnsoundFile("holds training_info, which folding would lose: export the model for inference")
    for function in proto.functions:
        if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _node_tensors(function.node)):
            raise UnsoundFile(f"has external data inside local function '{function.name}', which is not supported")
    cut = cut or [None] * len(proto.graph.initializer)
    for tensor, length in zip(proto.graph.initializer, cut, strict=True):
        if length is None:
            _check_tensor(tensor, folder)
        elif length != _bytes_of(tensor):
            raise UnsoundFile(
                f"tensor '{tensor.name}' has {length} bytes of data, "
                f"its type {tensor.data_type} and shape {list(tensor.dims)} need {_bytes_of(tensor)}"
            )
    for tensor in _inner_tensors(proto.graph):
        _check_tensor(tensor, folder)
    _check_names(proto.graph)
    skeleton = _skeleton(proto, cut)
    onnx.checker.check_model(_with_shapes(skeleton))
    inferred = onnx.shape_inference.infer_shapes(skeleton, check_type=True, strict_mode=True)
    _check_convolutions(inferred.graph)


def _inner_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every dense tensor in the attributes of a graph's nodes, in subgraphs too."""
    if graph.sparse_initializer:
        # onnx-ir 1.1 drops them without a word when it reads a model.
        raise UnsoundFile(f"has a sparse initializer in graph '{graph.name}', which is not supported: make it dense")
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for subgraph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            yield from subgraph.initializer
            yield from _inner_tensors(subgraph)


def _check_tensor(tensor: onnx.TensorProto, folder: Path) -> None:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        _check_external(tensor, folder)
    else:
        onnx.checker.check_tensor(tensor)


def _check_names(graph: onnx.GraphProto) -> None:
    """ONNX's checker does not see two initializers of one name, of which a reader would keep one."""
    seen: set[str] = set()
    for tensor in graph.initializer:
        if tensor.name in seen:
            raise UnsoundFile(f"has two initializers '{tensor.name}' in graph '{graph.name}', expected one")
        seen.add(tensor.name)


def _bytes_of(tensor: onnx.TensorProto) -> int | None:
    """As type and shape say; None where they say nothing."""
    bits = _BITS.get(ir.DataType(tensor.data_type)) if tensor.data_type in ir.DataType._value2member_map_ else None
    if bits is None or any(size < 0 for size in tensor.dims):
        return None
    elements: int = math.prod(tensor.dims)
    return (elements * bits + 7) // 8


def _check_external(tensor: onnx.TensorProto, folder: Path) -> None:
    """External data is a file in the model's folder, and long enough for the tensor's type and shape."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    what = f"tensor '{tensor.name}' has its data in '{location}'"
    root = folder.resolve()
    data = (root / location).resolve() if "\0" not in location else root
    if not location or Path(location).is_absolute() or not data.is_relative_to(root):
        raise UnsoundFile(f"{what}, expected a file in the model's folder")
    if not data.is_file():
        raise UnsoundFile(f"{what}, which does not exist")
    needed = _bytes_of(tensor)
    if needed is None:
        raise UnsoundFile(f"{what}, type {tensor.data_type} and shape {list(tensor.dims)} do not describe bytes")
    try:
        offset = int(entries.get("offset") or 0)
        length = int(entries.get("length") or needed)
    except ValueError:
        raise UnsoundFile(f"{what}, whose offset or length is not a number") from None
    if offset < 0 or length != needed or offset + needed > data.stat().st_size:
        raise UnsoundFile(
            f"{what}: {needed} bytes are needed from offset {offset}, length says {length}, "
            f"the file has {data.stat().st_size}"
        )


def _check_convolutions(graph: onnx.GraphProto) -> None:
    """ONNX's inference does not compare a convolution's weight with its input's channels: run times fail there."""
    dims = {
        value.name: [dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info)
        if value.type.tensor_type.HasField("shape")
    }
    dims |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type not in ("Conv", "ConvTranspose") or node.domain not in ("", "ai.onnx"):
            continue
        x, weight = (dims.get(name) or [] for name in node.input[:2])
        if len(x) < 3 or len(weight) != len(x) or min(*weight, x[1]) < 0:  # -1: not a number
            continue
        group = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        expected = weight[1] * group if node.op_type == "Conv" else weight[0]
        if x[1] != expected:
            name = f"'{node.name}'" if node.name else f"of '{node.output[0]}'"
            raise UnsoundFile(
                f"{node.op_type} {name} reads {x[1]} channels, "
                f"its weight '{node.input[1]}' of shape {weight} with group={group} is for {expected}"
            )


def _skeleton(proto: onnx.ModelProto, cut: Sequence[int | None]) -> onnx.ModelProto:
    """The model with its large constants as inputs: all that the checker judges, without copying the weights."""
    skeleton = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions)
    graph, whole = skeleton.graph, proto.graph
    graph.name = whole.name
    graph.input.extend(whole.input)
    for node in whole.node:
        value = _large_constant(node)
        if value is None:
            graph.node.append(node)
        else:
            graph.input.append(onnx.helper.make_tensor_value_info(node.output[0], value.data_type, value.dims))
    graph.output.extend(whole.output)
    graph.value_info.extend(whole.value_info)
    declared = {value.name for value in whole.input}
    for tensor, length in zip(whole.initializer, cut, strict=True):
        is_here = length is None and tensor.data_location != onnx.TensorProto.EXTERNAL
        if is_here and tensor.ByteSize() <= _LARGE_BYTES:
            graph.initializer.append(tensor)
        elif tensor.name not in declared:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return skeleton


def _large_constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or len(node.output) != 1:
        return None
    tensors = [attribute.t for attribute in node.attribute if attribute.name == "value" and attribute.HasField("t")]
    return tensors[0] if len(tensors) == 1 and tensors[0].ByteSize() > _LARGE_BYTES else None


def _with_shapes(skeleton: onnx.ModelProto) -> onnx.ModelProto:
    """The checker wants every input and output to declare a rank; run times, and we, can do without."""
    copy = onnx.ModelProto()
    copy.CopyFrom(skeleton)
    for value in (*copy.graph.input, *copy.graph.output):
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.SetInParent()
    return copy

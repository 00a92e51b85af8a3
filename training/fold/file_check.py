"""Is what a file holds a model? ONNX's checker and strict shape inference, and what those two do not look at.

Works on the container alone: text that is text, tensors that fit their declared size, external data that stays in the
model's folder, operators of a version that is known, nothing that onnx-ir would drop without a word. Reads no weight,
folds nothing.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

_MOST_NODES = 200_000  # with calls of local functions written out; each costs some 0.3 ms, and several KB of memory
_MOST_CALLS = 100  # of local functions, one inside the other
_MOST_JOINED = 1 << 20  # numbers that a Concat of constants gives
_LARGE_BYTES = 1024  # initializers above this are shown to the checker by type and shape only
_STANDARD = ("", "ai.onnx")  # names of the domain of ONNX's own operators
_EXTERNAL_KEYS = frozenset({"location", "offset", "length", "checksum", "basepath"})  # "basepath": written by loaders
_BITS: dict[ir.DataType, int] = {
    t: t.bitwidth for t in ir.DataType if t not in (ir.DataType.UNDEFINED, ir.DataType.STRING)
}


class UnsoundFile(Exception):
    """What is wrong with a file, in one line; for what ONNX's own checker does not look at."""


def check_file(proto: onnx.ModelProto, folder: Path, cut: Sequence[int | None] = ()) -> None:
    """Raise if `proto`, read from a file in `folder`, cannot be trusted to be a model.

    What it says of its own intermediate tensors is taken out of it where that contradicts what its nodes compute: some
    exporters write such notes, which run times ignore.
    `cut`: for each of the graph's initializers the number of bytes that it has in the file but not in `proto`, or None.

    Raises UnsoundFile, or the error of ONNX's checker or shape inference.
    """
    if not proto.HasField("graph") or not proto.ir_version:
        raise UnsoundFile("is not an ONNX model: it holds no graph")
    if proto.training_info:
        raise UnsoundFile("holds training_info, which folding would lose: export the model for inference")
    _check_size(proto)
    _check_text(proto)
    _check_opsets(proto)
    if not proto.graph.output:
        raise UnsoundFile(f"graph '{proto.graph.name}' has no output, so that it computes nothing")
    for value in (*proto.graph.input, *proto.graph.output):
        _check_sizes(value)
    cut = cut or [None] * len(proto.graph.initializer)
    _check_tensors(proto, folder, cut)
    _check_names(proto.graph)
    _check_declared(proto.graph)
    skeleton = _skeleton(proto, cut)
    for tensor in _node_tensors(skeleton.graph.node):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:  # the checker would look for it where we are
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(folder))
    onnx.checker.check_model(_with_shapes(skeleton))
    try:
        inferred = _inferred(skeleton)
    except onnx.shape_inference.InferenceError:
        inferred = _inferred_without_notes(skeleton)
        del proto.graph.value_info[:]
    _check_joined_constants(inferred.graph)
    _check_convolutions(inferred.graph)


def _check_tensors(proto: onnx.ModelProto, folder: Path, cut: Sequence[int | None]) -> None:
    for function in proto.functions:
        if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _node_tensors(function.node)):
            raise UnsoundFile(f"has external data inside local function '{function.name}', which is not supported")
    for tensor, length in zip(proto.graph.initializer, cut, strict=True):
        if length is None:
            _check_tensor(tensor, folder)
        elif length != _bytes_of(tensor):
            raise _other_length(tensor, length)
    for tensor in _inner_tensors(proto.graph):
        _check_tensor(tensor, folder)


def _inferred_without_notes(skeleton: onnx.ModelProto) -> onnx.ModelProto:
    del skeleton.graph.value_info[:]
    try:
        return _inferred(skeleton)
    except onnx.shape_inference.InferenceError as error:
        node = _first_refused(skeleton)
        raise UnsoundFile(f"{node.op_type} '{node.name or next(iter(node.output), '')}': {error}") from error


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)


def _first_refused(model: onnx.ModelProto) -> onnx.NodeProto:
    """ONNX's error tells sizes, often not whose: the shortest part of `model` that is refused ends with the node."""
    part = onnx.ModelProto()
    part.CopyFrom(model)
    nodes: list[onnx.NodeProto] = list(model.graph.node)

    def is_refused(count: int) -> bool:
        del part.graph.node[:]
        part.graph.node.extend(nodes[:count])
        if count < len(nodes):
            del part.graph.output[:]
        try:
            _inferred(part)
        except onnx.shape_inference.InferenceError:
            return True
        return False

    return nodes[bisect.bisect_left(range(1, len(nodes)), True, key=is_refused)]


def _check_size(proto: onnx.ModelProto) -> None:
    """Before anything else walks over all nodes: a few functions that call each other twice stand for billions."""
    bodies = {(function.domain, function.name, function.overload): function.node for function in proto.functions}
    sizes: dict[tuple[str, str, str], int] = {}

    def size(nodes: Iterable[onnx.NodeProto], calls: int) -> int:
        total = 0
        for node in nodes:
            total += 1 + called((node.domain, node.op_type, node.overload), calls)
            total += sum(size(graph.node, calls) for graph in _subgraphs(node))
            if total > _MOST_NODES:
                raise UnsoundFile(
                    f"has more than {_MOST_NODES} nodes (calls of local functions written out), expected fewer"
                )
        return total

    def called(key: tuple[str, str, str], calls: int) -> int:
        if key in bodies and key not in sizes:
            if calls > _MOST_CALLS:
                raise UnsoundFile(f"has local functions that call each other more than {_MOST_CALLS} deep")
            sizes[key] = 0  # until it is known: functions that call themselves are the checker's to name
            sizes[key] = size(bodies[key], calls + 1)
        return sizes.get(key, 0)

    size(proto.graph.node, 0)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _check_text(message: Any) -> None:
    """Protobuf hands out text that is no UTF-8 as bytes, which fail wherever a string is expected, if at all."""
    for field, content in message.ListFields():
        if field.type not in (field.TYPE_MESSAGE, field.TYPE_STRING):
            continue
        is_one = isinstance(content, str | bytes) or hasattr(content, "ListFields")
        for part in (content,) if is_one else content:
            if isinstance(part, bytes):
                raise UnsoundFile(f"has a field '{field.name}' of {part[:80]!r}, expected UTF-8 text")
            if not isinstance(part, str):
                _check_text(part)


def _check_opsets(proto: onnx.ModelProto) -> None:
    """An operator may mean something else in a version that is not known yet; ONNX's checker takes the newest."""
    newest = onnx.defs.onnx_opset_version()
    for opset in proto.opset_import:
        if opset.domain in _STANDARD and opset.version > newest:
            raise UnsoundFile(
                f"uses version {opset.version} of ONNX's operators, known are those up to {newest}: "
                "export it for one of them, or install a newer onnx"
            )


def _check_sizes(value: onnx.ValueInfoProto) -> None:
    sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim if dim.HasField("dim_value")]
    if any(size < 0 for size in sizes):
        raise UnsoundFile(
            f"tensor '{value.name}' is declared with a size of {min(sizes)}, "
            "expected 0 or more, or a name where the size is free"
        )


def _inner_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every dense tensor in the attributes of a graph's nodes, in subgraphs too."""
    if graph.sparse_initializer:
        # onnx-ir 1.1 drops them without a word when it reads a model.
        raise UnsoundFile(f"has a sparse initializer in graph '{graph.name}', which is not supported: make it dense")
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from _attribute_tensors(attribute)
        for subgraph in _subgraphs(node):
            yield from subgraph.initializer
            yield from _inner_tensors(subgraph)


def _attribute_tensors(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
        # onnx-ir 1.1 cannot read them.
        raise UnsoundFile(f"has a sparse tensor in attribute '{attribute.name}', which is not supported: make it dense")
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors


def _check_tensor(tensor: onnx.TensorProto, folder: Path) -> None:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        _check_external(tensor, folder)
    else:
        onnx.checker.check_tensor(tensor)
        if tensor.HasField("raw_data") and _bytes_of(tensor) not in (None, len(tensor.raw_data)):  # a longer one passes
            raise _other_length(tensor, len(tensor.raw_data))


def _other_length(tensor: onnx.TensorProto, length: int) -> UnsoundFile:
    return UnsoundFile(
        f"tensor '{tensor.name}' has {length} bytes of data, "
        f"its type {tensor.data_type} and shape {list(tensor.dims)} need {_bytes_of(tensor)}"
    )


def _check_names(graph: onnx.GraphProto) -> None:
    """ONNX's checker does not see two initializers of one name, of which a reader would keep one."""
    seen: set[str] = set()
    for tensor in graph.initializer:
        if tensor.name in seen:
            raise UnsoundFile(f"has two initializers '{tensor.name}' in graph '{graph.name}', expected one")
        seen.add(tensor.name)


def _check_declared(graph: onnx.GraphProto) -> None:
    """An initializer that is an input as well has the type and shape of that input; ONNX does not compare the two."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for value in graph.input:
        tensor = weights.get(value.name)
        if tensor is not None and not _describes(value, tensor):
            raise UnsoundFile(
                f"initializer '{tensor.name}' has type {tensor.data_type} and shape {list(tensor.dims)}, "
                "the input of that name is declared with others"
            )
    notes = [value for value in graph.value_info if value.name not in weights or _describes(value, weights[value.name])]
    if len(notes) < len(graph.value_info):
        del graph.value_info[:]
        graph.value_info.extend(notes)


def _describes(value: onnx.ValueInfoProto, tensor: onnx.TensorProto) -> bool:
    declared = value.type.tensor_type
    if not declared.HasField("shape"):
        return True
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in declared.shape.dim]
    fits = len(sizes) == len(tensor.dims) and all(a in (None, b) for a, b in zip(sizes, tensor.dims, strict=True))
    return fits and declared.elem_type == tensor.data_type


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
    unknown = sorted(set(entries) - _EXTERNAL_KEYS)
    if unknown:  # a mistyped "offset" is another place in the file
        raise UnsoundFile(f"{what} and says '{unknown[0]}' of it, expected one of {', '.join(sorted(_EXTERNAL_KEYS))}")
    if not location or Path(location).is_absolute() or not data.is_relative_to(root):
        raise UnsoundFile(f"{what}, expected a file in the model's folder")
    if not data.is_file():
        raise UnsoundFile(f"{what}, which does not exist")
    needed = _bytes_of(tensor)
    if needed is None:
        raise UnsoundFile(f"{what}, type {tensor.data_type} and shape {list(tensor.dims)} do not describe bytes")
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", needed))
    except ValueError:
        raise UnsoundFile(f"{what}, whose offset or length is not a number") from None
    if offset < 0 or length != needed or offset + needed > data.stat().st_size:
        raise UnsoundFile(
            f"{what}: {needed} bytes are needed from offset {offset}, length says {length}, "
            f"the file has {data.stat().st_size}"
        )


def _check_joined_constants(graph: onnx.GraphProto) -> None:
    """Forty nodes that each join a list with itself are a list of 2^40; inference, asked for numbers, would make it."""
    lengths = {value.name: value.type.tensor_type.shape.dim for value in (*graph.value_info, *graph.output)}
    constant = {tensor.name for tensor in graph.initializer} - {value.name for value in graph.input}
    for node in graph.node:
        if not constant.issuperset(filter(None, node.input)):
            continue
        constant.update(node.output)
        sizes = list(lengths.get(node.output[0], ())) if node.op_type == "Concat" else []
        if len(sizes) == 1 and sizes[0].dim_value > _MOST_JOINED:
            raise UnsoundFile(
                f"Concat '{node.name or node.output[0]}' joins constants to a list of {sizes[0].dim_value} numbers, "
                f"expected {_MOST_JOINED} at most: keep them as one initializer"
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
        if node.op_type not in ("Conv", "ConvTranspose") or node.domain not in _STANDARD:
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
    if node.op_type != "Constant" or node.domain not in _STANDARD or len(node.output) != 1:
        return None
    tensors = [attribute.t for attribute in node.attribute if attribute.name == "value" and attribute.HasField("t")]
    if len(tensors) != 1:
        return None
    is_large = max(tensors[0].ByteSize(), _bytes_of(tensors[0]) or 0) > _LARGE_BYTES
    return tensors[0] if is_large else None


def _with_shapes(skeleton: onnx.ModelProto) -> onnx.ModelProto:
    """The checker wants every input and output to declare a rank; run times, and we, can do without."""
    copy = onnx.ModelProto()
    copy.CopyFrom(skeleton)
    for value in (*copy.graph.input, *copy.graph.output):
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.SetInParent()
    return copy

"""Three good files, and what accidents and enemies make of them: for everything that reads somebody's ONNX file.

`GOOD` are a raw export, one with its weights beside it, and one with local functions and subgraphs; `write` puts one
into a folder. `REFUSED` are damages by name with a part of what must be said of them, `HARMLESS` those that leave a
model a model. Knows ONNX's container, nothing of folding.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from tests.training.fold.models import build, mild_statistics, rng_of

Array = np.ndarray[Any, Any]
SOURCE = "in.onnx"
DATA = "weights.bin"


def raw_export() -> onnx.ModelProto:
    """As torch's exporter writes it unoptimised: a missing bias is Expand(CastLike(0), Shape(w))."""
    graph = """m (float[2,3,6,5] x) => (float[2,5] y) {
        [zero] z = Constant <value = float[1] {0}> ()
        [cast] zc = CastLike (z, w)
        [shape] s = Shape <start=0, end=1> (w)
        [bias] k = Expand (zc, s)
        [conv] c = Conv <pads=[1,1,1,1]> (x, w, k)
        [bn1] n = BatchNormalization <epsilon=0.001> (c, g1, b1, m1, v1)
        [relu] r = Relu (n)
        [pool] p = GlobalAveragePool (r)
        [flat] f = Flatten (p)
        [head] l = Gemm <transB=1> (f, u)
        [bn2] y = BatchNormalization (l, g2, b2, m2, v2) }"""
    return _proto(build(graph, opset=18, w=_noise(0, 4, 3, 3, 3), u=_noise(1, 5, 4), **_statistics()))


def nested() -> onnx.ModelProto:
    """A local function, and a map in each branch of an If."""
    graph = """m (float[2,3,6,5] x, bool c) => (float[2,5,4,3] y) {
        [call] h = own.block (x, w, g1, b1, m1, v1)
        [if] y = If (c) <
            then_branch = yes () => (float[2,5,4,3] t) {
                [conv2] i = Conv (h, u) [bn2] t = BatchNormalization (i, g2, b2, m2, v2) },
            else_branch = no () => (float[2,5,4,3] e) {
                [conv3] j = Conv (h, u) [bn3] e = BatchNormalization (j, g2, b2, m2, v2) }> }"""
    function = """<domain: "own", opset_import: ["" : 17]>
        block (x, w, g, b, m, v) => (y) {
            [conv] h = Conv <pads=[1,1,1,1]> (x, w) [bn] n = BatchNormalization (h, g, b, m, v) y = Relu (n) }"""
    weights = {"w": _noise(0, 4, 3, 3, 3), "u": _noise(1, 5, 4, 3, 3)}
    return _proto(build(graph, functions=function, **weights, **_statistics()))


def _proto(model: ir.Model) -> onnx.ModelProto:
    """Without what onnx-ir says of weights beside them, so that a damaged one contradicts nothing but its use."""
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]
    return proto


def _noise(seed: int, *shape: int) -> Array:
    return rng_of(seed).normal(size=shape).astype(np.float32)


def _statistics() -> dict[str, Array]:
    drawn = {suffix: mild_statistics(rng_of(3), size, np.float32) for suffix, size in (("1", 4), ("2", 5))}
    return {f"{key}{suffix}": part for suffix, parts in drawn.items() for key, part in parts.items()}


def _one_file(make: Callable[[], onnx.ModelProto]) -> Callable[[Path], None]:
    return lambda folder: onnx.save(make(), folder / SOURCE)


def _two_files(folder: Path) -> None:
    onnx.save(raw_export(), folder / SOURCE, save_as_external_data=True, location=DATA, size_threshold=0)


GOOD: Mapping[str, Callable[[Path], None]] = {
    "raw export": _one_file(raw_export),
    "external data": _two_files,
    "functions and subgraphs": _one_file(nested),
}


@dataclass(frozen=True)
class Damage:
    """`do` changes a good file, and returns the bytes to write if they are no model's; `told` is part of the answer."""

    good: str
    do: Callable[[onnx.ModelProto], bytes | None]
    told: str = ""

    def write(self, folder: Path) -> Path:
        GOOD[self.good](folder)
        path = folder / SOURCE
        model = onnx.load(path, load_external_data=False)
        content = self.do(model)
        path.write_bytes(content or model.SerializeToString())
        return path


Do = Callable[[onnx.ModelProto], Any]


def _raw(do: Do, told: str = "") -> Damage:
    return Damage("raw export", _then_nothing(do), told)


def _inner(do: Do, told: str = "") -> Damage:
    return Damage("functions and subgraphs", _then_nothing(do), told)


def _then_nothing(do: Do) -> Callable[[onnx.ModelProto], bytes | None]:
    def done(model: onnx.ModelProto) -> bytes | None:
        content = do(model)
        return content if isinstance(content, bytes) else None

    return done


# --- What is damaged ------------------------------------------------------------------------------------------------


def _node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def _weight(model: onnx.ModelProto, name: str) -> TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def _put(name: str, array: Array) -> Do:
    """Other numbers for a weight."""
    return lambda model: _weight(model, name).CopyFrom(numpy_helper.from_array(array, name))


def _fill(name: str, value: float) -> Do:
    def do(model: onnx.ModelProto) -> None:
        old = numpy_helper.to_array(_weight(model, name))
        _put(name, np.full_like(old, value))(model)

    return do


def _declared(name: str, shape: list[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _string(model: onnx.ModelProto) -> None:
    _weight(model, "g1").CopyFrom(helper.make_tensor("g1", TensorProto.STRING, [4], [b"one"] * 4))


def _dims(*dims: int) -> Do:
    def do(model: onnx.ModelProto) -> None:
        _weight(model, "w").dims[:] = dims

    return do


def _bytes(change: Callable[[bytes], bytes]) -> Do:
    def do(model: onnx.ModelProto) -> None:
        tensor = _weight(model, "w")
        tensor.raw_data = change(tensor.raw_data)

    return do


def _reads(node: str, index: int, name: str) -> Do:
    def do(model: onnx.ModelProto) -> None:
        _node(model, node).input[index] = name

    return do


def _gives(node: str, name: str) -> Do:
    def do(model: onnx.ModelProto) -> None:
        _node(model, node).output[0] = name

    return do


def _says(node: str, **attributes: Any) -> Do:
    """Attributes, in place of those of the same name."""

    def do(model: onnx.ModelProto) -> None:
        target = _node(model, node)
        others = [attribute for attribute in target.attribute if attribute.name not in attributes]
        del target.attribute[:]
        target.attribute.extend(others)
        target.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())

    return do


def _input_size(axis: int, size: int) -> Do:
    def do(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size

    return do


def _opset(version: int) -> Do:
    def do(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = version

    return do


def _ir_version(version: int) -> Do:
    def do(model: onnx.ModelProto) -> None:
        model.ir_version = version

    return do


def _drop(field: str, *names: str) -> Do:
    """Entries of a list of the graph, those of these names or all."""

    def do(model: onnx.ModelProto) -> None:
        entries = getattr(model.graph, field)
        kept = [entry for entry in entries if names and entry.name not in names]
        del entries[:]
        entries.extend(kept)

    return do


def _twice(field: str) -> Do:
    def do(model: onnx.ModelProto) -> None:
        entries = getattr(model.graph, field)
        entries.append(entries[0])

    return do


def _sparse() -> onnx.SparseTensorProto:
    one, at = numpy_helper.from_array(np.ones(1, np.float32), "s"), numpy_helper.from_array(np.zeros(1, np.int64))
    return helper.make_sparse_tensor(one, at, [3])


def _sparse_constant(model: onnx.ModelProto) -> None:
    _node(model, "zero").CopyFrom(helper.make_node("Constant", [], ["z"], sparse_value=_sparse()))


def _behind(op_type: str, count: int) -> Do:
    """That many more nodes at the end of the graph."""

    def do(model: onnx.ModelProto) -> None:
        model.graph.node[-1].output[0] = "t0"
        for i in range(count):
            model.graph.node.add(op_type=op_type, input=[f"t{i}"], output=[f"t{i + 1}" if i < count - 1 else "y"])

    return do


def _doubled(count: int) -> Do:
    """A constant joined with itself, and so on: 2^count numbers, which the graph adds up to one."""

    def do(model: onnx.ModelProto) -> None:
        nodes = [
            helper.make_node("Concat", [f"d{i}"] * 2, [f"d{i + 1}"], axis=0, name=f"join{i}") for i in range(count)
        ]
        model.graph.node.extend([*nodes, helper.make_node("ReduceSum", [f"d{count}"], ["all"], keepdims=0)])
        model.graph.node[0].output[0] = "d0"
        model.graph.node[1].input[0] = "d0"
        model.graph.output.append(helper.make_tensor_value_info("all", TensorProto.FLOAT, []))

    return do


def _functions(count: int, calls: int) -> Do:
    """`count` functions in a row, of which each calls the one before `calls` times; the first is the good one."""

    def do(model: onnx.ModelProto) -> None:
        names = list(model.functions[0].input)
        model.functions[0].name = "block0"
        for i in range(1, count):
            results = [f"r{j}" for j in range(calls)]
            nodes = [helper.make_node(f"block{i - 1}", names, [result], domain="own") for result in results]
            nodes.append(helper.make_node("Sum", results, ["y"]))
            opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
            model.functions.append(helper.make_function("own", f"block{i}", names, ["y"], nodes, opsets))
        _node(model, "call").op_type = f"block{count - 1}"

    return do


def _calls_itself(model: onnx.ModelProto) -> None:
    function = model.functions[0]
    function.opset_import.append(helper.make_opsetid("own", 1))
    function.node[2].CopyFrom(helper.make_node("block", ["n", *function.input[1:]], ["y"], domain="own"))


def _branch(model: onnx.ModelProto) -> onnx.GraphProto:
    return _node(model, "if").attribute[0].g


def _nested_ifs(depth: int) -> Do:
    """More levels than protobuf would write, put together from bytes: each If is the whole branch of the next."""

    def do(model: onnx.ModelProto) -> bytes:
        result = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
        model.graph.output.append(result)
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "flag"))
        leaf = helper.make_graph([helper.make_node("Relu", ["n"], ["o"])], "leaf", [], [result])
        otherwise = _field(5, helper.make_attribute("else_branch", leaf).SerializeToString())
        ends = _field(2, b"level") + _field(12, result.SerializeToString())
        size, begins, closes = len(leaf.SerializeToString()), [], []
        for _ in range(depth):
            node = _field(1, b"flag") + _field(2, b"o") + _field(4, b"If") + otherwise
            attribute, kind = _field(1, b"then_branch") + _head(6, size), b"\xa0\x01\x05"  # type: GRAPH
            inside = len(attribute) + size + len(kind)
            node += _head(5, inside)
            begins.append(_head(1, len(node) + inside) + node + attribute)
            closes.append(kind + ends)
            size += len(begins[-1]) + len(closes[-1])
        # A second graph in the same model: protobuf joins the two.
        return b"".join(
            [model.SerializeToString(), _head(7, size), *reversed(begins), leaf.SerializeToString(), *closes]
        )

    return do


def _field(number: int, content: bytes) -> bytes:
    return _head(number, len(content)) + content


def _head(number: int, length: int) -> bytes:
    """Tag and length of a protobuf field that has a length."""
    head = bytearray()
    for rest in (number << 3 | 2, length):
        while rest >= 0x80:
            head.append(rest & 0x7F | 0x80)
            rest >>= 7
        head.append(rest)
    return bytes(head)


def _external(told: str = "", **entries: Any) -> Damage:
    """Other entries for the first weight; None: without that one."""

    def do(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        merged = {entry.key: entry.value for entry in tensor.external_data} | entries
        del tensor.external_data[:]
        for key, value in merged.items():
            if value is not None:
                tensor.external_data.add(key=key, value=str(value))

    return Damage("external data", _then_nothing(do), told)


# --- The tables ------------------------------------------------------------------------------------------------------

_IDENTITIES = 201_000
_OUTSIDE = "expected a file in the model's folder"
REFUSED: Mapping[str, Damage] = {
    "a weight that is an input of another shape": _raw(
        lambda model: model.graph.input.append(_declared("w", [20, 3, 3, 3])),
        "initializer 'w' has type 1 and shape [4, 3, 3, 3], the input of that name is declared with others"),
    "a cycle": _raw(_reads("conv", 0, "r"), "topologically sorted, however input 'r' of node: name: conv"),
    "a tensor computed twice": _raw(_gives("relu", "c"), "'c' has been used as output names multiple times"),
    "an input twice": _raw(_twice("input"), "'x' has been used as graph input names multiple times"),
    "a weight twice": _raw(_twice("initializer"), "has two initializers 'w' in graph 'm', expected one"),
    "a missing weight": _raw(_drop("initializer", "m1"), "however input 'm1' of node: name: bn1"),
    "an output that nobody computes": _raw(_gives("bn2", "z2"), "Graph output 'y' is not an output of any node"),
    "no outputs": _raw(_drop("output"), "graph 'm' has no output, so that it computes nothing"),
    "a nameless output": _raw(_gives("relu", ""), "Node (relu)'s output 0"),
    "a nameless weight": _raw(
        lambda model: _weight(model, "g1").ClearField("name"), "Field 'name' of 'init' is required but missing"),
    "a name that is no text": _raw(
        lambda model: model.SerializeToString().replace(b"relu", b"r\xfflu"),
        r"has a field 'name' of b'r\xfflu', expected UTF-8 text"),
    "a note that is no text": _raw(
        lambda model: model.SerializeToString() + _field(2, b"\xf2\xf3"),
        r"has a field 'producer_name' of b'\xf2\xf3', expected UTF-8 text"),
    "parameters of another size": _raw(_put("m1", np.zeros(3, np.float32)), "BatchNormalization 'bn1': [Shape"),
    "parameters of another rank": _raw(_put("m1", np.zeros((2, 2), np.float32)), "BatchNormalization 'bn1': [Shape"),
    "parameters of another type": _raw(_put("m1", np.zeros(4, np.int64)), "unsupported type: tensor(int64)"),
    "parameters of complex numbers": _raw(_put("g1", np.zeros(4, np.complex64)), "unsupported type: tensor(complex64)"),
    "parameters of strings": _raw(_string, "unsupported type: tensor(string)"),
    "a weight of another size": _raw(
        _put("w", np.zeros((4, 2, 3, 3), np.float32)), "Conv 'conv' reads 3 channels, its weight 'w' of shape [4, 2"),
    "a weight cut short": _raw(_bytes(lambda raw: raw[:-3]), "raw_data size (429 bytes) is too small"),
    "a weight too long": _raw(
        _bytes(lambda raw: raw + b"123"),
        "tensor 'w' has 435 bytes of data, its type 1 and shape [4, 3, 3, 3] need 432"),
    "a weight without numbers": _raw(_bytes(lambda raw: b""), "should contain one and only one value field"),
    "a weight of a negative size": _raw(_dims(-4, 3, 3, 3), "Negative dimension value (tensor name: w)"),
    "a weight of a huge size": _raw(_dims(2**62, 3, 3, 3), "Tensor dimension product overflow (tensor name: w)"),
    "a weight of sizes that wrap around": _raw(_dims(2**62, 4), "Tensor dimension product overflow (tensor name: w)"),
    "a weight of 3,000 axes": _raw(_dims(*[1] * 3000, 108), "Number of spatial dimensions"),
    "an input of a negative size": _raw(
        _input_size(2, -6), "tensor 'x' is declared with a size of -6, expected 0 or more, or a name where"),
    "an input of no pixels": _raw(_input_size(2, 0), "kernel [3, 3] is larger than the padded input [0, 5]"),
    "an input that no machine holds": _raw(
        _input_size(2, 2**60), "input 'x': no machine holds an array of shape [2, 3, 1152921504606846976, 5]"),
    "an input of no type": _raw(lambda model: model.graph.input[0].ClearField("type"), "Field 'type' of 'value_info'"),
    "an operator that does not exist": _raw(
        lambda model: setattr(_node(model, "relu"), "op_type", "Rehlu"), "No Op registered for Rehlu"),
    "an attribute twice": _raw(
        lambda model: _node(model, "bn1").attribute.append(helper.make_attribute("epsilon", 0.5)),
        "Attribute 'epsilon' appeared multiple times"),
    "an attribute of another type": _raw(_says("bn1", epsilon="small"), "Expected: 'FLOAT', actual: 'STRING'"),
    "padding beyond all numbers": _raw(_says("conv", pads=[2**62] * 4), "Integer overflow while adding"),
    "padding that no machine holds": _raw(_says("conv", pads=[2**40] * 4), "node 'conv' (Conv) refuses its inputs"),
    "a stride of 0": _raw(_says("conv", strides=[0, 0]), "strides must only contain positive values"),
    "groups of 0": _raw(_says("conv", group=0), "with group=0 is for 0"),
    "a negative group": _raw(_says("conv", group=-1), "with group=-1 is for -3"),
    "opset 10,000": _raw(_opset(10_000), "uses version 10000 of ONNX's operators, known are those up to"),
    "opset 0": _raw(_opset(0), "domain_version of 0"),
    "opset -3": _raw(_opset(-3), "domain_version of -3"),
    "no opset": _raw(lambda model: model.ClearField("opset_import"), "must specify opset_import"),
    "IR version 0": _raw(_ir_version(0), "is not an ONNX model: it holds no graph"),
    "IR version 999": _raw(_ir_version(999), "ir_version 999 is higher than the checker's"),
    "a sparse weight": _raw(
        lambda model: model.graph.sparse_initializer.append(_sparse()), "has a sparse initializer in graph 'm'"),
    "a sparse constant": _raw(_sparse_constant, "has a sparse tensor in attribute 'sparse_value', which"),
    "too many nodes": _raw(
        _behind("Identity", _IDENTITIES), "has more than 200000 nodes (calls of local functions written out)"),
    "constants that double": _raw(_doubled(40), "Concat 'join20' joins constants to a list of 2097152 numbers"),
    "10,000 nested Ifs": _raw(_nested_ifs(10_000), "is not an ONNX model: its "),
    "a function that calls itself": _inner(_calls_itself, "Cycle detected in model-local function references"),
    "functions that stand for a billion nodes": _inner(_functions(30, 2), "has more than 200000 nodes"),
    "functions 3,000 deep": _inner(_functions(3000, 1), "call each other more than 100 deep"),
    "a function twice": _inner(
        lambda model: model.functions.append(model.functions[0]), "same implementation id 'own::block'"),
    "a call without its arguments": _inner(
        lambda model: _node(model, "call").ClearField("input"), "Input 0 expected to have type but instead is null"),
    "an If of one branch": _inner(
        lambda model: _node(model, "if").attribute.pop(), "Required attribute 'else_branch' is missing"),
    "a branch without outputs": _inner(
        lambda model: _branch(model).ClearField("output"), "produce different number of outputs"),
    "a branch that takes a name": _inner(
        lambda model: _branch(model).node[0].output.__setitem__(0, "h"), "'h' has been used as output names"),
    "a sparse weight in a branch": _inner(
        lambda model: _branch(model).sparse_initializer.append(_sparse()), "has a sparse initializer in graph 'yes'"),
    "data above the folder": _external(_OUTSIDE, location="../weights.bin"),
    "data at an absolute path": _external(_OUTSIDE, location="/etc/passwd"),
    "data that does not exist": _external("'gone.bin', which does not exist", location="gone.bin"),
    "data in a name of 5,000 letters": _external("File name too long", location="w" * 5000),
    "data in a name with a zero in it": _external("which does not exist", location="a\0b"),
    "data before its file": _external("432 bytes are needed from offset -1", offset=-1),
    "data behind its file": _external("432 bytes are needed from offset 9223372036854775808", offset=2**63),
    "data of a negative length": _external("length says -432", length=-432),
    "data of no length": _external("whose offset or length is not a number", length=""),
    "data at a place that is no number": _external("whose offset or length is not a number", offset="0x0"),
    "data at a place of a mistyped name": _external("and says 'ofset' of it, expected one of", ofset=4),
}  # fmt: skip
HARMLESS: Mapping[str, Damage] = {
    "a note of another shape": _raw(lambda model: model.graph.value_info.append(_declared("c", [2, 4, 99, 5]))),
    "a note of a negative size": _raw(lambda model: model.graph.value_info.append(_declared("c", [2, 4, -1, 5]))),
    "a note of another rank": _raw(lambda model: model.graph.value_info.append(_declared("c", [2]))),
    "a note of another shape on a weight": _raw(
        lambda model: model.graph.value_info.append(_declared("w", [20, 3, 3, 3]))),
    "nodes of one name": _raw(lambda model: [setattr(node, "name", "same") for node in model.graph.node]),
    "nodes without names": _raw(lambda model: [node.ClearField("name") for node in model.graph.node]),
    "a name with a line break and a colour": _raw(
        lambda model: setattr(_node(model, "bn1"), "name", "a\nb\x1b[31m<script>")),
    "an output twice": _raw(_twice("output")),
    "a variance without end": _raw(_fill("v1", np.inf)),
    "weights that overflow": _raw(lambda model: (_fill("w", 3e38)(model), _fill("g1", 1e5)(model))),
    "300 weights that nobody reads": _raw(
        lambda model: model.graph.initializer.extend(
            numpy_helper.from_array(np.zeros(1, np.float32), f"i{i}") for i in range(300))),
    "constants that double a little": _raw(_doubled(10)),
    "data without offset and length": _external(offset=None, length=None),
}  # fmt: skip
NOT_FINITE: Mapping[str, Damage] = {
    "a scale that is no number": _raw(_fill("g1", np.nan)),
    "a negative variance": _raw(_fill("v1", -1)),
    "an epsilon below zero": _raw(_says("bn1", epsilon=-100.0)),
    "an epsilon that is no number": _raw(_says("bn1", epsilon=float("nan"))),
    "weights that are no numbers": _raw(_fill("w", np.nan)),
    "a mean without end": _raw(_fill("m1", np.inf)),
    "weights without end": _raw(_fill("w", np.inf)),
}
"""Whatever goes in, no finite number comes out: a file like any other, of which nothing can be proved."""


def link_to_outside(folder: Path) -> None:
    (folder / DATA).unlink()
    (folder / DATA).symlink_to("/etc/passwd")


def pipe_of_data(folder: Path) -> None:
    (folder / DATA).unlink()
    os.mkfifo(folder / DATA)


def folder_of_data(folder: Path) -> None:
    (folder / DATA).unlink()
    (folder / DATA).mkdir()


BESIDE: Mapping[str, tuple[Callable[[Path], None], str]] = {
    "a link out of the folder": (link_to_outside, _OUTSIDE),
    "a pipe": (pipe_of_data, "which does not exist"),
    "a folder": (folder_of_data, "which does not exist"),
    "shorter than offset and length": (lambda folder: os.truncate(folder / DATA, 100), "the file has 100"),
    "gone": (lambda folder: (folder / DATA).unlink(), "which does not exist"),
}
"""What may have become of the file beside the model."""

NO_FILES: Mapping[str, tuple[Callable[[Path], None], str]] = {
    "nothing": (lambda path: None, "cannot be read: No such file or directory"),
    "a folder": (lambda path: path.mkdir(), "cannot be read: Is a directory"),
    "a pipe": (os.mkfifo, "cannot be read: it is a pipe or a device"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "cannot be read: it is a pipe or a device"),
    "a link to itself": (lambda path: path.symlink_to(path), "is a link that leads nowhere"),
    "no bytes": (lambda path: path.touch(), "is not an ONNX model: it holds no graph"),
    "noise": (lambda path: path.write_bytes(rng_of(0).bytes(100_000)), "is not an ONNX model: its 100000 bytes do not"),
    "zeros": (lambda path: path.write_bytes(bytes(100_000)), "is not an ONNX model: its 100000 bytes do not parse"),
}  # fmt: skip
"""What may be where the model should be."""

"""Large payloads are cut out of a file's bytes and put back, byte for byte what protobuf itself reads and writes."""

from __future__ import annotations

import io

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from training.fold.container import LARGE_BYTES, Payload, Splice, cut, write_numbers
from training.fold.tensors import Hollow

LARGE = np.arange(LARGE_BYTES // 4 + 1, dtype=np.float32)
SMALL = np.arange(3, dtype=np.int64)


def tensor(array: np.ndarray, name: str = "w", **fields: str) -> TensorProto:
    proto = numpy_helper.from_array(array, name)
    for key, value in fields.items():
        setattr(proto, key, value)
    return proto


def model_of(*tensors: TensorProto) -> onnx.ModelProto:
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [], [], list(tensors), doc_string="words")
    return helper.make_model(graph, producer_name="test", opset_imports=[helper.make_opsetid("", 17)])


def cut_and_parsed(model: onnx.ModelProto) -> tuple[bytes, onnx.ModelProto, list[Payload | None]]:
    whole = model.SerializeToString()
    skeleton, payloads = cut(memoryview(whole))
    return whole, onnx.ModelProto.FromString(skeleton), payloads


def test_only_large_payloads_are_cut():
    model = model_of(tensor(SMALL, "a"), tensor(LARGE, "b"), tensor(SMALL, "c"), tensor(LARGE[::-1].copy(), "d"))

    whole, rest, payloads = cut_and_parsed(model)

    assert [payload is not None for payload in payloads] == [False, True, False, True]
    for payload, original, left in zip(payloads, model.graph.initializer, rest.graph.initializer, strict=True):
        if payload is not None:
            assert whole[payload.offset : payload.offset + payload.length] == original.raw_data
            left.raw_data = original.raw_data
    assert rest == model


def typed() -> TensorProto:
    return helper.make_tensor("w", TensorProto.FLOAT, LARGE.shape, LARGE.tolist())


def strings() -> TensorProto:
    return helper.make_tensor("w", TensorProto.STRING, [1], [b"a" * (LARGE_BYTES + 1)])


def with_location() -> TensorProto:
    proto = tensor(LARGE)
    proto.data_location = TensorProto.EXTERNAL
    return proto


@pytest.mark.parametrize("proto", [typed(), strings(), with_location()], ids=["typed", "strings", "external"])
def test_what_is_not_one_plain_payload_is_left_to_protobuf(proto):
    _, rest, payloads = cut_and_parsed(model_of(proto))

    assert payloads == [None] and rest == model_of(proto)


def test_a_graph_in_two_pieces_is_one_graph():
    """A message may come in parts, which protobuf merges; so do the lists in it."""
    halves = [model_of(tensor(LARGE, "a")), onnx.ModelProto(graph=onnx.GraphProto(initializer=[tensor(SMALL, "b")]))]
    whole = b"".join(half.SerializeToString() for half in halves)

    skeleton, payloads = cut(memoryview(whole))

    assert [t.name for t in onnx.ModelProto.FromString(skeleton).graph.initializer] == ["a", "b"]
    assert payloads[0] is not None and payloads[1] is None


DAMAGED = {
    "a length beyond the end": bytes([7 << 3 | 2, 100, 0]),
    "a number that does not end": bytes([1 << 3, *[0xFF] * 12]),
    "a tag that does not end": bytes([0x80]),
    "a group": bytes([7 << 3 | 3]),
    "an unknown wire type": bytes([7 << 3 | 7]),
    "field number zero": bytes([0, 0]),
    "an initializer beyond its graph": bytes([7 << 3 | 2, 2, 5 << 3 | 2, 9]),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_what_is_no_list_of_fields_is_an_error(content):
    with pytest.raises(ValueError, match=r"^(a field|a number|wire type)"):
        cut(memoryview(content))


@given(st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_kept_or_refused(content):
    try:
        skeleton, payloads = cut(memoryview(content))
    except ValueError:
        return
    assert not any(payloads)
    assert len(skeleton) <= len(content)  # lengths may have been written in more bytes than they need


@pytest.mark.parametrize("fields", [{}, {"doc_string": "behind the data"}], ids=["plain", "documented"])
def test_a_splice_is_what_protobuf_writes(fields):
    whole = model_of(tensor(SMALL, "a"), tensor(LARGE, "b", **fields), tensor(SMALL, "c"))
    weight = ir.from_proto(whole.graph.initializer[1])
    hollow = onnx.ModelProto()
    hollow.CopyFrom(whole)
    hollow.graph.initializer[1].ClearField("raw_data")

    splice, file = Splice(hollow.SerializeToString(), [None, weight, None]), io.BytesIO()
    splice.write(file)

    assert file.getvalue() == whole.SerializeToString()
    assert splice.size == len(file.getvalue())


def test_a_tensor_of_the_wrong_length_is_an_error():
    lying = ir.LazyTensor(lambda: ir.tensor(SMALL), ir.DataType.FLOAT, ir.Shape((9,)), name="w")

    with pytest.raises(ValueError, match=r"^tensor 'w' has 24 bytes, its type and shape need 36$"):
        write_numbers(lying, io.BytesIO())


def test_a_hollow_tensor_has_a_type_and_a_shape_only():
    hollow = Hollow(ir.tensor(LARGE, name="w", doc_string="words"))

    proto = ir.to_proto(hollow)

    assert (proto.name, proto.data_type, list(proto.dims), proto.doc_string) == ("w", 1, list(LARGE.shape), "words")
    assert not proto.raw_data
    with pytest.raises(TypeError, match="without its numbers"):
        hollow.numpy()

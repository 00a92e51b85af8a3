"""Reading what others wrote, with suspicion; writing whole files or none."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.training.fold.models import acceptance_model, serialized
from training.fold import FoldError, ModelFileError, fold, read_model, write_model

X = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
Y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b", "c", "d"])


def zeros(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(np.zeros(shape, np.float32), name)


def proto(*nodes, initializers=(), output=Y, **more) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes), "g", [X], [output], list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9, **more)


def conv(*initializers: TensorProto) -> onnx.ModelProto:
    return proto(helper.make_node("Conv", ["x", "w"], ["y"], name="conv"), initializers=initializers)


def external(location: str | None, offset=None, length=None) -> onnx.ModelProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 3, 3, 3], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return conv(tensor)


def read(tmp_path: Path, content: onnx.ModelProto | bytes) -> ir.Model:
    path = tmp_path / "m.onnx"
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    return read_model(path)


def sparse() -> onnx.ModelProto:
    model = conv(zeros("w", 4, 3, 3, 3))
    values, indices = (
        numpy_helper.from_array(np.ones(1, np.float32), "s"),
        numpy_helper.from_array(np.zeros(1, np.int64)),
    )
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3]))
    return model


def training_info() -> onnx.ModelProto:
    model = conv(zeros("w", 4, 3, 3, 3))
    model.training_info.add()
    return model


def short_data() -> onnx.ModelProto:
    tensor = zeros("w", 4, 3, 3, 3)
    tensor.raw_data = tensor.raw_data[:-4]
    return conv(tensor)


def negative_size() -> onnx.ModelProto:
    tensor = zeros("w", 4, 3, 3, 3)
    tensor.dims[0] = -4
    return conv(tensor)


def relu(source: str, target: str):
    return helper.make_node("Relu", [source], [target], name=f"to_{target}")


def external_in_a_function() -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 17, "own" : 1]>
        m (float[2] x) => (float[2] y) { y = own.f (x) }
        <domain: "own", opset_import: ["" : 17]>
        f (a) => (b) { k = Constant <value = float[1] {1.0}> () b = Add (a, k) }"""
    )
    model.functions[0].node[0].attribute[0].t.CopyFrom(external("w.bin").graph.initializer[0])
    return model


NO_FUNCTION_ENDS = onnx.parser.parse_model(
    """<ir_version: 9, opset_import: ["" : 17, "own" : 1]>
    m (float[2] x) => (float[2] y) { y = own.f (x) }
    <domain: "own", opset_import: ["" : 17, "own" : 1]> f (a) => (b) { b = own.f (a) }"""
)
BATCHNORM = helper.make_node("BatchNormalization", ["h", "s", "b", "b", "b"], ["y"])
BROKEN = {
    "an empty file": (b"", "is not an ONNX model: it holds no graph"),
    "a text file": (b"# a read-me, not a model\n", "is not an ONNX model: "),
    "a truncated file": (conv(zeros("w", 4, 3, 3, 3)).SerializeToString()[:-20], "is not an ONNX model: its 5"),
    "a cycle": (proto(relu("b", "a"), relu("a", "b"), relu("a", "y")), "Nodes in a graph must be topologically sorted"),
    "an initializer that is absent": (conv(), "topologically sorted, however input 'w' of node"),
    "an output nobody computes": (proto(relu("x", "z")), "Graph output 'y' is not an output of any node"),
    "a name computed twice": (proto(relu("x", "y"), relu("x", "y")), "must be in single static assignment (SSA) form"),
    "an unknown operator": (proto(helper.make_node("Nonsense", ["x"], ["y"])), "No Op registered for Nonsense"),
    "a function that calls itself": (NO_FUNCTION_ENDS, "Cycle detected in model-local function references"),
    "an undeclared domain": (
        proto(helper.make_node("Op", ["x"], ["y"], domain="own")), "No opset import for domain 'own'"),
    "a shape that contradicts": (
        proto(relu("x", "y"), output=helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 8, 7])),
        "Inferred shape and existing shape differ in dimension 3: (8) vs (7)"),
    "a type that contradicts": (
        proto(relu("x", "y"), output=helper.make_tensor_value_info("y", TensorProto.DOUBLE, [1, 3, 8, 8])),
        "Inferred elem type differs from existing elem type"),
    "parameters of another length": (
        proto(relu("x", "h"), BATCHNORM, initializers=[zeros("s", 3), zeros("b", 4)]),
        "Dimension mismatch in unification between"),
    "a weight for other channels": (
        conv(zeros("w", 4, 2, 3, 3)),
        "Conv 'conv' reads 3 channels, its weight 'w' of shape [4, 2, 3, 3] with group=1 is for 2"),
    "a deconvolution for other channels": (
        proto(helper.make_node("ConvTranspose", ["x", "w"], ["y"]), initializers=[zeros("w", 4, 2, 3, 3)]),
        "ConvTranspose of 'y' reads 3 channels, its weight 'w' of shape [4, 2, 3, 3] with group=1 is for 4"),
    "data shorter than its shape": (short_data(), "raw_data size (428 bytes) is too small"),
    "a negative size": (negative_size(), ""),
    "a sparse initializer": (sparse(), "has a sparse initializer in graph 'g', which is not supported: make it dense"),
    "training_info": (training_info(), "holds training_info, which folding would lose: export the model for inference"),
    "external data above the folder": (
        external("../w.bin"),
        "tensor 'w' has its data in '../w.bin', expected a file in the model's folder"),
    "external data at an absolute path": (
        external("/etc/passwd"),
        "tensor 'w' has its data in '/etc/passwd', expected a file in the model's folder"),
    "external data nowhere": (
        external(None),
        "tensor 'w' has its data in '', expected a file in the model's folder"),
    "external data that does not exist": (
        external("gone.bin"),
        "tensor 'w' has its data in 'gone.bin', which does not exist"),
    "external data in a folder": (
        external("."),
        "tensor 'w' has its data in '.', which does not exist"),
    "external data through a link": (
        external("link.bin"),
        "expected a file in the model's folder"),
    "external data too short": (
        external("w.bin", offset=4),
        "432 bytes are needed from offset 4, length says 432, the file has 432"),
    "external data of another length": (
        external("w.bin", length=400),
        "432 bytes are needed from offset 0, length says 400"),
    "external data in a function": (
        external_in_a_function(),
        "has external data inside local function 'f', which is not supported",
    ),
    "an offset below zero": (
        external("w.bin", offset=-4),
        "432 bytes are needed from offset -4"),
    "an offset that is no number": (
        external("w.bin", offset="four"),
        "whose offset or length is not a number"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_gets_one_clear_line(tmp_path, content, message):
    (tmp_path / "w.bin").write_bytes(bytes(432))
    (tmp_path.parent / "outside.bin").write_bytes(bytes(432))
    (tmp_path / "link.bin").symlink_to(tmp_path.parent / "outside.bin")

    with pytest.raises(ModelFileError) as caught:
        read(tmp_path, content)

    text = str(caught.value)
    assert text.startswith(f"{tmp_path}/m.onnx: ") and message in text
    assert "\n" not in text and len(text) < 700


def test_a_missing_file(tmp_path):
    with pytest.raises(ModelFileError, match=r"none\.onnx: cannot be read: No such file or directory$"):
        read_model(tmp_path / "none.onnx")


def test_a_folder(tmp_path):
    with pytest.raises(ModelFileError, match=r"cannot be read: Is a directory$"):
        read_model(tmp_path)


def test_a_file_of_every_kind_of_garbage_is_refused_not_raised(tmp_path):
    """Each byte of a small model overwritten in turn: a model or one line, never anything else."""
    whole = bytearray(conv(zeros("w", 1, 3, 1, 1)).SerializeToString())
    for position in range(len(whole)):
        for value in (0x00, 0xFF, whole[position] ^ 0x01):
            damaged = whole.copy()
            damaged[position] = value
            try:
                fold(read(tmp_path, bytes(damaged)))
            except FoldError as error:
                assert "\n" not in str(error)


def test_what_reads_back_is_what_was_written(tmp_path):
    model = acceptance_model()

    write_model(model, tmp_path / "m.onnx")

    assert serialized(read_model(tmp_path / "m.onnx")) == serialized(model)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_outputs_of_unknown_rank_are_fine(tmp_path):
    model = proto(relu("x", "y"), output=helper.make_tensor_value_info("y", TensorProto.FLOAT, None))

    assert read(tmp_path, model).graph.outputs[0].shape is None


def test_operators_of_other_domains_are_fine(tmp_path):
    model = proto(helper.make_node("Op", ["x"], ["y"], domain="own"))
    model.opset_import.append(helper.make_opsetid("own", 1))

    assert read(tmp_path, model).graph[0].domain == "own"


def test_external_data_is_read_from_the_models_folder_and_written_into_the_file(tmp_path, monkeypatch):
    weight = np.arange(108, dtype=np.float32).reshape(4, 3, 3, 3)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w.bin").write_bytes(b"head" + weight.tobytes())
    model = read(tmp_path, external("data/w.bin", offset=4, length=432))
    monkeypatch.chdir("/")

    write_model(model, tmp_path / "out.onnx")

    written = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    assert np.array_equal(numpy_helper.to_array(written.graph.initializer[0]), weight)
    assert isinstance(model.graph.initializers["w"].const_value, ir.ExternalTensor)


def test_a_link_to_the_model_still_finds_its_data_beside_the_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(432))
    (tmp_path / "real" / "blob").write_bytes(external("w.bin").SerializeToString())
    (tmp_path / "m.onnx").symlink_to(tmp_path / "real" / "blob")

    assert not read_model(tmp_path / "m.onnx").graph.initializers["w"].const_value.numpy().any()


def test_the_source_is_known_by_its_hash(tmp_path):
    write_model(acceptance_model(), tmp_path / "m.onnx")

    folded, _ = fold(tmp_path / "m.onnx")

    expected = hashlib.sha256((tmp_path / "m.onnx").read_bytes()).hexdigest()
    assert folded.metadata_props["foldserve.source_sha256"] == expected


class TestWriting:
    def test_a_failure_leaves_the_old_file_and_nothing_else(self, tmp_path, monkeypatch):
        target = tmp_path / "m.onnx"
        target.write_bytes(b"old")

        def full(descriptor):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(ModelFileError, match=r"m\.onnx: cannot be written: No space left on device$"):
            write_model(acceptance_model(), target)

        assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]

    def test_a_folder_that_does_not_exist(self, tmp_path):
        with pytest.raises(ModelFileError, match=r"cannot be written: No such file or directory$"):
            write_model(acceptance_model(), tmp_path / "none" / "m.onnx")

    def test_the_users_umask_decides_who_may_read(self, tmp_path):
        old = os.umask(0o027)
        try:
            write_model(acceptance_model(), tmp_path / "m.onnx")
        finally:
            os.umask(old)
        assert (tmp_path / "m.onnx").stat().st_mode & 0o777 == 0o640

    def test_more_than_one_file_can_hold(self, tmp_path):
        model = acceptance_model()
        huge = ir.LazyTensor(lambda: None, ir.DataType.FLOAT, ir.Shape((1 << 30,)), name="huge")
        model.graph.initializers["deconv_weight"].const_value = huge

        with pytest.raises(ModelFileError, match="bytes of tensors do not fit into one file of"):
            write_model(model, tmp_path / "m.onnx")
        assert not list(tmp_path.iterdir())

    def test_external_data_that_went_away(self, tmp_path):
        (tmp_path / "w.bin").write_bytes(bytes(432))
        model = read(tmp_path, external("w.bin"))
        (tmp_path / "w.bin").unlink()

        with pytest.raises(ModelFileError, match=r"out\.onnx: cannot be written: "):
            write_model(model, tmp_path / "out.onnx")

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
from training.fold.files import staged_model
from training.fold.tensors import FileTensor

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


def large_data(extra: int, dims=(64, 3, 16, 24), data_type: int = 1) -> TensorProto:
    """A tensor whose payload does not pass through protobuf, with that many bytes too many."""
    return TensorProto(name="w", data_type=data_type, dims=dims, raw_data=bytes(294912 + extra))


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
    "a large tensor shorter than its shape": (
        conv(large_data(-4)), "tensor 'w' has 294908 bytes of data, its type 1 and shape [64, 3, 16, 24] need 294912"),
    "a large tensor longer than its shape": (
        conv(large_data(4)), "tensor 'w' has 294916 bytes of data, its type 1 and shape [64, 3, 16, 24] need 294912"),
    "a large tensor of a negative size": (
        conv(large_data(0, dims=[-64, 3, 16, 24])), "tensor 'w' has 294912 bytes of data, its type 1 and shape [-64, "),
    "a large tensor of no type": (
        conv(large_data(0, data_type=99)), "Invalid tensor data type 99"),
    "two initializers of one name": (
        conv(zeros("w", 4, 3, 3, 3), zeros("w", 4, 3, 3, 3)), "has two initializers 'w' in graph 'g', expected one"),
    "a large and a small initializer of one name": (
        conv(large_data(0), zeros("w", 4, 3, 3, 3)), "has two initializers 'w' in graph 'g', expected one"),
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

    def test_data_that_cannot_be_made_leaves_nothing(self, tmp_path):
        """More than one protobuf can hold goes into two files, of which none is left."""
        model = acceptance_model()
        huge = ir.LazyTensor(lambda: ir.tensor(np.zeros(3)), ir.DataType.FLOAT, ir.Shape((1 << 30,)), name="huge")
        model.graph.initializers["deconv_weight"].const_value = huge

        with pytest.raises(
            ModelFileError, match=r"m\.onnx: the model cannot be written: tensor 'deconv_weight' has 24 "
        ):
            write_model(model, tmp_path / "m.onnx")
        assert not list(tmp_path.iterdir())

    def test_external_data_that_went_away(self, tmp_path):
        (tmp_path / "w.bin").write_bytes(bytes(432))
        model = read(tmp_path, external("w.bin"))
        (tmp_path / "w.bin").unlink()

        with pytest.raises(ModelFileError, match=r"out\.onnx: cannot be written: "):
            write_model(model, tmp_path / "out.onnx")


def large_model(seed: int = 0) -> ir.Model:
    """Two weights of 288 KiB, one of them in a Constant node, and a small bias."""
    rng = np.random.default_rng(seed)
    w = numpy_helper.from_array(rng.normal(size=(64, 3, 16, 24)).astype(np.float32), "w")
    k = numpy_helper.from_array(rng.normal(size=(64, 64, 6, 12)).astype(np.float32))
    b = numpy_helper.from_array(rng.normal(size=64).astype(np.float32), "b")
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["h"], pads=[20] * 4),
        helper.make_node("Constant", [], ["k"], value=k),
        helper.make_node("Conv", ["h", "k"], ["y"]),
    ]
    return ir.from_proto(proto(*nodes, initializers=[w, b]))


def weights(model: ir.Model) -> dict[str, np.ndarray]:
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}


@pytest.fixture(params=["in memory", "on disk"])
def _everything_counts_as_large(request, monkeypatch):
    """Files above 256 MB are mapped instead of read; here all of them are."""
    if request.param == "on disk":
        monkeypatch.setattr("training.fold.tensors.IN_MEMORY_BYTES", 0)
        monkeypatch.setattr("training.fold.files.IN_MEMORY_BYTES", 0)


@pytest.mark.usefixtures("_everything_counts_as_large")
class TestLargeModels:
    @pytest.mark.parametrize("external", [False, True], ids=["one file", "two files"])
    def test_what_reads_back_is_what_was_written(self, tmp_path, external):
        write_model(large_model(), tmp_path / "m.onnx", external=external)
        found = read_model(tmp_path / "m.onnx")

        onnx.checker.check_model(tmp_path / "m.onnx", full_check=True)
        assert isinstance(found.graph.initializers["w"].const_value, FileTensor | ir.ExternalTensor)
        for name, wanted in weights(large_model()).items():
            np.testing.assert_array_equal(weights(found)[name], wanted)
        if not external:
            assert (tmp_path / "m.onnx").read_bytes() == ir.to_proto(large_model()).SerializeToString()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", *(["m.onnx.data"] if external else [])]

    def test_a_copy_of_what_was_read_is_the_same_file(self, tmp_path):
        write_model(large_model(), tmp_path / "a.onnx")

        write_model(read_model(tmp_path / "a.onnx"), tmp_path / "b.onnx")

        assert (tmp_path / "b.onnx").read_bytes() == (tmp_path / "a.onnx").read_bytes()

    @pytest.mark.parametrize("external", [False, True], ids=["one file", "two files"])
    def test_a_model_may_be_written_over_its_own_file(self, tmp_path, external):
        write_model(large_model(), tmp_path / "m.onnx", external=external)
        model = read_model(tmp_path / "m.onnx")
        model.graph.initializers["b"].const_value = ir.tensor(np.ones(64, np.float32), name="b")

        write_model(model, tmp_path / "m.onnx", external=external)

        found = weights(read_model(tmp_path / "m.onnx"))
        np.testing.assert_array_equal(found["w"], weights(large_model())["w"])
        assert found["b"].tolist() == [1.0] * 64

    def test_weights_can_be_read_after_the_file_is_gone(self, tmp_path):
        write_model(large_model(), tmp_path / "m.onnx")
        model = read_model(tmp_path / "m.onnx")
        (tmp_path / "m.onnx").unlink()

        np.testing.assert_array_equal(weights(model)["w"], weights(large_model())["w"])

    def test_external_data_comes_into_one_file_on_request(self, tmp_path):
        write_model(large_model(), tmp_path / "m.onnx", external=True)

        write_model(read_model(tmp_path / "m.onnx"), tmp_path / "n.onnx", external=False)

        assert (tmp_path / "n.onnx").read_bytes() == ir.to_proto(large_model()).SerializeToString()

    def test_arrays_are_views_that_cannot_be_written(self, tmp_path):
        write_model(large_model(), tmp_path / "m.onnx")
        tensor = read_model(tmp_path / "m.onnx").graph.initializers["w"].const_value

        assert not tensor.numpy().flags.writeable
        assert tensor.tobytes() == weights(large_model())["w"].tobytes()
        np.testing.assert_array_equal(np.asarray(tensor), tensor.numpy())


class TestDataFiles:
    def test_offsets_are_whole_pages(self, tmp_path):
        model = large_model()
        model.graph.register_initializer(ir.val("z", const_value=ir.tensor(np.ones(40_001, np.float32), name="z")))

        write_model(model, tmp_path / "m.onnx", external=True)

        entries = [
            {entry.key: entry.value for entry in tensor.external_data}
            for tensor in onnx.load(tmp_path / "m.onnx", load_external_data=False).graph.initializer
        ]
        assert [int(entry["offset"]) for entry in entries if entry] == [0, 72 * 4096]
        assert (tmp_path / "m.onnx.data").stat().st_size == (72 + 40) * 4096

    def test_a_data_file_is_never_replaced_but_goes_with_its_model(self, tmp_path):
        """Whoever has read the old graph finds the old data, or none; never the new."""
        path = tmp_path / "m.onnx"
        names = []
        for seed in range(3):
            write_model(large_model(seed), path, external=True)
            (data,) = (p.name for p in tmp_path.iterdir() if p != path)
            names.append(data)
            np.testing.assert_array_equal(weights(read_model(path))["w"], weights(large_model(seed))["w"])

        assert names == ["m.onnx.data", "m.onnx.1.data", "m.onnx.data"]

    def test_a_data_file_of_another_name_or_another_model_stays(self, tmp_path):
        (tmp_path / "m.onnx.data").write_bytes(b"somebody's")
        (tmp_path / "w.bin").write_bytes(bytes(432))
        (tmp_path / "m.onnx").write_bytes(external("w.bin").SerializeToString())

        write_model(large_model(), tmp_path / "m.onnx", external=True)

        assert (tmp_path / "m.onnx.data").read_bytes() == b"somebody's"
        assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.1.data", "m.onnx.data", "w.bin"]

    def test_a_model_of_small_weights_only_needs_no_second_file(self, tmp_path):
        write_model(acceptance_model(), tmp_path / "m.onnx", external=True)

        assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]

    def test_what_is_not_committed_vanishes(self, tmp_path):
        write_model(large_model(0), tmp_path / "m.onnx", external=True)

        with staged_model(large_model(1), tmp_path / "m.onnx", external=True) as staged:
            assert len(list(tmp_path.iterdir())) == 4
        assert staged.path == tmp_path / "m.onnx"

        assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
        np.testing.assert_array_equal(weights(read_model(tmp_path / "m.onnx"))["w"], weights(large_model(0))["w"])

    def test_a_data_file_that_became_shorter_while_it_was_copied(self, tmp_path, monkeypatch):
        monkeypatch.setattr("training.fold.files.IN_MEMORY_BYTES", 0)
        write_model(large_model(), tmp_path / "m.onnx", external=True)
        model = read_model(tmp_path / "m.onnx")
        os.truncate(tmp_path / "m.onnx.data", 1000)

        with pytest.raises(ModelFileError, match=r"out\.onnx: cannot be written: .*has become shorter"):
            write_model(model, tmp_path / "out.onnx", external=True)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]

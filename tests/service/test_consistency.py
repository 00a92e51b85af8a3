"""Report against bytes, config.json against the model file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from service.consistency import check_files, derive_metadata, read_labels
from service.errors import ModelRejected
from service.repository import ModelConfig, VersionDirectory, VersionReport, read_config, read_report
from service.session import Session
from tests.service.handmade import LINEAR, publish, save_model


def check(folder: Path) -> None:
    version = VersionDirectory(folder, 1)
    report = read_report(version)
    assert report is not None
    check_files(version, report)


def test_files_as_published_pass(tmp_path: Path) -> None:
    check(publish(tmp_path))


def _flip_one_bit_of_a_weight(folder: Path) -> None:
    content = bytearray((folder / "model.onnx").read_bytes())
    content[content.index(b"\x00\x00\xc0\x40") + 2] ^= 1  # 6.0 as little-endian float32
    (folder / "model.onnx").write_bytes(content)


def _lengthen(folder: Path) -> None:
    with (folder / "golden.npz").open("ab") as file:
        file.write(b"\0")


def _folder_instead(folder: Path) -> None:
    (folder / "golden.npz").unlink()
    (folder / "golden.npz").mkdir()


def _pipe(name: str) -> Callable[[Path], None]:
    """Nobody writes into it: who opens it waits for ever."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return damage


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        pytest.param(_flip_one_bit_of_a_weight, r"model\.onnx has sha256 .* publish the version again", id="one-bit"),
        pytest.param(
            lambda f: save_model(f / "model.onnx", LINEAR.replace("6.0", "7.0")), r"model\.onnx", id="swapped"
        ),
        pytest.param(_lengthen, r"golden\.npz has \d+ bytes, report\.json lists \d+", id="one-byte-more"),
        pytest.param(lambda f: (f / "golden.npz").unlink(), r"golden\.npz is missing, but report\.json", id="missing"),
        pytest.param(lambda f: (f / "model.onnx").unlink(), r"model\.onnx is missing", id="no-model"),
        pytest.param(_pipe("model.onnx"), r"model\.onnx is not a regular file", id="model-is-a-pipe"),
        pytest.param(_pipe("golden.npz"), r"golden\.npz", id="pipe"),
        pytest.param(_folder_instead, r"golden\.npz", id="folder"),
    ],
)
def test_a_changed_file_is_rejected_by_name(damage: Callable[[Path], Any], told: str, tmp_path: Path) -> None:
    folder = publish(tmp_path)
    damage(folder)
    with pytest.raises(ModelRejected, match=told):
        check(folder)


def metadata_for(tmp_path: Path, config: Mapping[str, Any], text: str = LINEAR) -> Any:
    path = save_model(tmp_path / "m" / "1" / "model.onnx", text)
    session = Session(path, providers=("CPUExecutionProvider",), intra_op_threads=1)
    return derive_metadata(VersionDirectory(path.parent, 1), ModelConfig.model_validate_json(_json(config)), session)


def _json(config: Mapping[str, Any]) -> str:
    return json.dumps({"name": "m", **config})


def tensor(name: str = "x", datatype: str = "FP32", shape: tuple[int, ...] = (-1, 2)) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(shape)}


def test_a_silent_config_takes_everything_from_the_model_file(tmp_path: Path) -> None:
    metadata = metadata_for(tmp_path, {})
    assert [(t.name, t.datatype, t.shape) for t in metadata.inputs] == [("x", "FP32", (-1, 2))]
    assert [(t.name, t.datatype, t.shape) for t in metadata.outputs] == [("y", "FP32", (-1, 3))]
    assert (metadata.name, metadata.versions, metadata.platform) == ("m", ("1",), "onnx_onnxv1")


def test_a_config_may_fix_what_the_file_leaves_free(tmp_path: Path) -> None:
    free = "g (float[N,H] x) => (float[N,H] y) { y = Neg(x) }"
    metadata = metadata_for(tmp_path, {"inputs": [tensor(shape=(-1, 7))]}, free)
    assert metadata.inputs[0].shape == (-1, 7)


def test_order_is_the_model_file_s(tmp_path: Path) -> None:
    text = "g (float[N] a, float[N] b) => (float[N] y) { y = Sub(a, b) }"
    config = {"inputs": [tensor("b", shape=(-1,)), tensor("a", shape=(-1,))]}
    assert [t.name for t in metadata_for(tmp_path, config, text).inputs] == ["a", "b"]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        pytest.param({"inputs": [tensor("image")]}, r"inputs \['image'\], the model file has \['x'\]", id="name"),
        pytest.param({"inputs": [tensor(), tensor("z")]}, r"\['x', 'z'\]", id="one-too-many"),
        pytest.param({"inputs": [tensor(datatype="FP64")]}, r"input 'x': config.json says FP64", id="datatype"),
        pytest.param({"inputs": [tensor(shape=(-1, 3))]}, r"input 'x': .* \[-1, 3\], .* \[-1, 2\]", id="shape"),
        pytest.param({"inputs": [tensor(shape=(-1, -1))]}, r"input 'x': .* \[-1, -1\]", id="wider-than-the-file"),
        pytest.param({"inputs": [tensor(shape=(-1,))]}, r"input 'x'", id="rank"),
        pytest.param({"outputs": [tensor("q")]}, r"declares outputs \['q'\]", id="output"),
    ],
)  # fmt: skip
def test_a_contradiction_is_rejected_with_both_sides(config: Mapping[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ModelRejected, match=told):
        metadata_for(tmp_path, config)


def test_a_contradiction_names_the_file_that_it_stands_in(tmp_path: Path) -> None:
    path = save_model(tmp_path / "m" / "1" / "model.onnx", LINEAR)
    (tmp_path / "m" / "config.pbtxt").write_text('max_batch_size: 4 input { name: "x" data_type: TYPE_FP64 dims: 2 }')
    session = Session(path, providers=("CPUExecutionProvider",), intra_op_threads=1)
    with pytest.raises(ModelRejected, match=r"input 'x': config\.pbtxt says FP64, the model file FP32"):
        derive_metadata(VersionDirectory(path.parent, 1), read_config(tmp_path / "m"), session)


@pytest.fixture
def labelled(tmp_path: Path) -> tuple[VersionDirectory, ModelConfig]:
    """A version whose output `y` has its labels in labels.txt."""
    folder = tmp_path / "models" / "m" / "1"
    folder.mkdir(parents=True)
    config = {"outputs": [{**tensor("y", shape=(-1, 3)), "labels": "labels.txt"}, tensor("z")]}
    return VersionDirectory(folder, 1), ModelConfig.model_validate_json(_json(config))


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        pytest.param(b"cat\ndog\n", ("cat", "dog"), id="a-line-each"),
        pytest.param(b"cat\ndog", ("cat", "dog"), id="no-line-end-at-the-end"),
        pytest.param(b"cat\r\ndog\r\n", ("cat", "dog"), id="windows"),
        pytest.param(b"cat\n\ndog\n\n", ("cat", "", "dog", ""), id="an-empty-line-is-an-empty-label"),
        pytest.param("gro\u00df\nx\u2028y\n".encode(), ("gro\u00df", "x\u2028y"), id="only-newlines-end-a-line"),
    ],
)
@pytest.mark.parametrize("place", ["1", "."], ids=["beside-the-model-file", "in-the-model-s-folder"])
def test_labels_are_read_from_the_version_or_as_in_triton_from_the_model(
    place: str, content: bytes, labels: tuple[str, ...], labelled: tuple[VersionDirectory, ModelConfig]
) -> None:
    version, config = labelled
    (version.path.parent / place / "labels.txt").write_bytes(content)
    assert read_labels(version, config) == {"y": labels}


def test_a_version_s_own_labels_come_first(labelled: tuple[VersionDirectory, ModelConfig]) -> None:
    version, config = labelled
    (version.path.parent / "labels.txt").write_text("shared\n")
    (version.path / "labels.txt").write_text("own\n")
    assert read_labels(version, config) == {"y": ("own",)}


def _secret(folder: Path) -> Path:
    """Something outside the model's folder."""
    path = folder.parents[1] / "secret.txt"
    path.write_text("password\n")
    return path


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        pytest.param(lambda f: None, r"labels\.txt, named in config\.json for output 'y', is missing", id="missing"),
        pytest.param(lambda f: (f / "labels.txt").symlink_to("nowhere"), r"is missing", id="dangling-link"),
        pytest.param(lambda f: (f / "labels.txt").mkdir(), r"labels\.txt is not a regular file", id="folder"),
        pytest.param(lambda f: os.mkfifo(f / "labels.txt"), r"labels\.txt is not a regular file", id="named-pipe"),
        pytest.param(
            lambda f: (f / "labels.txt").symlink_to(_secret(f)), r"leads out of the model's folder", id="link-outside"
        ),
        pytest.param(
            lambda f: (f.parent / "labels.txt").symlink_to("/etc/hostname"), r"leads out", id="link-in-triton-s-place"
        ),
        pytest.param(lambda f: (f / "labels.txt").write_bytes(b"ok\n\xff"), r"is not UTF-8 at byte 3", id="not-utf-8"),
        pytest.param(
            lambda f: (f / "labels.txt").write_bytes(b"\n" * ((16 << 20) + 1)), r"is longer than 16777216", id="huge"
        ),
    ],
)  # fmt: skip
def test_labels_that_cannot_be_had_are_told_with_the_output(
    damage: Callable[[Path], Any], told: str, labelled: tuple[VersionDirectory, ModelConfig]
) -> None:
    version, config = labelled
    damage(version.path)
    with pytest.raises(ModelRejected, match=told) as caught:
        read_labels(version, config)
    assert "password" not in str(caught.value)


def test_labels_may_be_a_link_within_as_kubernetes_mounts_them(
    labelled: tuple[VersionDirectory, ModelConfig], tmp_path: Path
) -> None:
    version, config = labelled
    (version.path.parent / "..data").mkdir()
    (version.path.parent / "..data" / "labels.txt").write_text("cat\n")
    (version.path.parent / "labels.txt").symlink_to("..data/labels.txt")
    assert read_labels(version, config) == {"y": ("cat",)}
    # And the whole model may be one.
    (tmp_path / "linked").symlink_to(version.path.parent, target_is_directory=True)
    assert read_labels(VersionDirectory(tmp_path / "linked" / "1", 1), config) == {"y": ("cat",)}


def test_a_model_file_of_another_name_is_suggested(tmp_path: Path) -> None:
    save_model(tmp_path / "1" / "resnet.onnx", LINEAR)
    with pytest.raises(ModelRejected, match=r"model\.onnx is missing; resnet\.onnx is there: rename it, or name it"):
        check_files(VersionDirectory(tmp_path / "1", 1), VersionReport())

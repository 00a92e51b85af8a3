"""Report against bytes, config.json against the model file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from service.consistency import check_files, check_labels, derive_metadata
from service.errors import ModelRejected
from service.repository import ModelConfig, VersionDirectory, read_report
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


def test_a_labels_file_must_exist(tmp_path: Path) -> None:
    config = ModelConfig.model_validate_json(
        _json({"outputs": [{**tensor("y", shape=(-1, 3)), "labels": "labels.txt"}]})
    )
    version = VersionDirectory(tmp_path, 1)
    with pytest.raises(ModelRejected, match=r"labels\.txt, named in config\.json for output 'y', is missing"):
        check_labels(version, config)
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    check_labels(version, config)

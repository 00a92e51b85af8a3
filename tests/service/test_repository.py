"""Reading what stands beside a model: whether a file is there, and whether it says what it must."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper
from pydantic import ValidationError

from service.errors import ModelRejected
from service.model_knobs import SchedulerConfig, VersionPolicy
from service.repository import (
    ModelConfig,
    VersionDirectory,
    chosen_versions,
    model_names,
    read_config,
    read_report,
    strays,
    to_json,
    versions,
)
from tests.service.handmade import LINEAR, load_version, publish, save_model


def test_every_directory_is_a_model_or_a_stray_unless_it_is_hidden(tmp_path: Path) -> None:
    for name in ("digits", "v1.2_b", ".publish-x", "sp ace", "-x"):
        (tmp_path / name).mkdir()
    (tmp_path / "a file").touch()
    assert model_names(tmp_path) == ("digits", "v1.2_b")
    assert strays(tmp_path, of="models") == ("-x", "sp ace")


def test_every_directory_is_a_version_or_a_stray_unless_it_is_hidden(tmp_path: Path) -> None:
    for name in ("1", "20", "0", "03", "v5", "-1", ".publish-x"):
        (tmp_path / name).mkdir()
    assert [found.version for found in versions(tmp_path)] == [1, 20]
    assert strays(tmp_path, of="versions") == ("-1", "0", "03", "v5")


def test_no_config_is_the_default_one(tmp_path: Path) -> None:
    assert read_config(tmp_path / "m").max_batch_size is None


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(os.mkfifo, id="named-pipe"),
        pytest.param(Path.mkdir, id="folder"),
        pytest.param(lambda path: path.symlink_to("nowhere"), id="dangling-link"),
    ],
)
def test_a_config_that_is_no_file_is_rejected_rather_than_waited_for_or_ignored(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    make(tmp_path / "config.json")
    with pytest.raises(ModelRejected, match=r"config\.json is not a regular file"):
        read_config(tmp_path)


def test_a_config_may_be_a_link_to_a_file(tmp_path: Path) -> None:
    """Kubernetes mounts a ConfigMap so."""
    (tmp_path / "data").write_text(json.dumps({"name": tmp_path.name, "max_batch_size": 3}))
    (tmp_path / "config.json").symlink_to("data")
    assert read_config(tmp_path).max_batch_size == 3


@pytest.mark.parametrize(
    ("members", "key"),
    [
        pytest.param('"max_batch_size": 4, "max_batch_size": 8', "max_batch_size", id="at-the-top"),
        pytest.param('"scheduler": {"instances": 1, "instances": 1}', "instances", id="within-and-the-same-value"),
        pytest.param(r'"max_batch_size": 4, "max_batch_siz\u0065": 4', "max_batch_size", id="spelt-otherwise"),
    ],
)
def test_a_key_that_is_given_twice_is_rejected(members: str, key: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(f'{{"name": "{tmp_path.name}", {members}}}')
    with pytest.raises(ModelRejected, match=rf"config\.json: '{key}' is given more than once in one object; keep one"):
        read_config(tmp_path)


def test_the_same_key_in_two_objects_is_no_repetition(tmp_path: Path) -> None:
    tensors = [{"name": name, "datatype": "FP32", "shape": [-1]} for name in ("a", "b")]
    (tmp_path / "config.json").write_text(json.dumps({"name": tmp_path.name, "inputs": tensors}))
    assert [tensor.name for tensor in read_config(tmp_path).inputs] == ["a", "b"]


@pytest.mark.parametrize("missing", ["model.onnx", "golden.npz"])
def test_a_report_must_list_the_model_and_the_golden_samples_it_promises(missing: str, tmp_path: Path) -> None:
    folder = publish(tmp_path)
    version = VersionDirectory(folder, 1)
    report = json.loads((folder / "report.json").read_text())
    assert read_report(version) is not None
    del report["files"][missing]
    (folder / "report.json").write_text(json.dumps(report))
    with pytest.raises(ModelRejected, match=rf"files lists .* but not {missing}; publish the version again"):
        read_report(version)


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        pytest.param({}, (10,), id="the-latest-by-default"),
        pytest.param({"latest": 2}, (3, 10), id="two"),
        pytest.param({"latest": 9}, (1, 2, 3, 10), id="more-than-there-are"),
        pytest.param({"all": True}, (1, 2, 3, 10), id="all"),
        pytest.param({"specific": [3, 1]}, (1, 3), id="specific"),
        pytest.param({"specific": [2, 7]}, (2,), id="specific-and-one-is-missing"),
        pytest.param({"latest": 1, "all": False, "specific": []}, (10,), id="spelled-out"),
    ],
)
def test_a_version_policy_chooses_by_number(policy: dict[str, Any], chosen: tuple[int, ...]) -> None:
    assert VersionPolicy.model_validate_json(json.dumps(policy)).choose((10, 2, 1, 3)) == chosen


@pytest.mark.parametrize(
    ("scheduler", "told"),
    [
        pytest.param({"priority_levels": 2}, "default_priority is 0; .* from 1 to 2", id="no-default-level"),
        pytest.param({"priority_levels": 2, "default_priority": 3}, "default_priority is 3", id="no-such-level"),
        pytest.param({"default_priority": 1}, "with priority_levels 0 it must be 0", id="no-levels"),
        pytest.param({"max_queue_delay_us": -1}, "max_queue_delay_us", id="negative-delay"),
        pytest.param({"max_queue_delay_us": 0.5}, "max_queue_delay_us", id="not-whole"),
        pytest.param({"instances": 65}, "instances", id="too-many-instances"),
    ],
)
def test_a_scheduler_that_cannot_be_is_rejected(scheduler: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        SchedulerConfig.model_validate_json(json.dumps(scheduler))


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param({"latest": 2, "all": True}, id="two-policies"),
        pytest.param({"all": True, "specific": [1]}, id="all-and-specific"),
        pytest.param({"specific": [0]}, id="no-version-number"),
        pytest.param({"latest": 0}, id="none"),
    ],
)
def test_a_version_policy_is_one_policy(policy: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        VersionPolicy.model_validate_json(json.dumps(policy))


# --- Triton's files -----------------------------------------------------------------------------------------------

PBTXT = """
platform: "onnxruntime_onnx"
max_batch_size: 4
input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 3 ] } ]
dynamic_batching { preferred_batch_size: [ 4 ] }
"""


def model_folder(tmp_path: Path, pbtxt: str = PBTXT) -> Path:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.pbtxt").write_text(pbtxt)
    return folder


def test_triton_s_configuration_is_read_where_there_is_none_of_ours(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = read_config(model_folder(tmp_path))
    assert (config.name, config.max_batch_size, config.inputs[0].shape) == ("m", 4, (-1, 2))
    assert config.file_name == "config.pbtxt"
    (warning,) = caplog.messages
    assert warning.startswith("m/config.pbtxt, line 6, column 20: dynamic_batching.preferred_batch_size is not used")


def test_our_configuration_wins_over_triton_s_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = model_folder(tmp_path, "not even in the format")
    (folder / "config.json").write_text('{"name": "m", "max_batch_size": 9}')
    assert read_config(folder).max_batch_size == 9
    assert caplog.messages == ["m/config.pbtxt is not read: config.json stands beside it"]


@pytest.mark.parametrize(
    ("pbtxt", "told"),
    [
        pytest.param("max_batch_size: x", r"config\.pbtxt: line 1, column 1: max_batch_size is x", id="value"),
        pytest.param("{", r"config\.pbtxt: line 1, column 1: found '\{', expected a field's name", id="syntax"),
        pytest.param(
            "max_batch_size: -1",
            r"config\.pbtxt: line 1, column 1: max_batch_size is -1; expected 0 or more$",
            id="range",
        ),
        pytest.param('name: "n"', r"config\.pbtxt: name is 'n', but the directory is 'm'", id="another-name"),
        pytest.param(
            "dynamic_batching { priority_levels: 2 }",
            r"config\.pbtxt: line 1, column 1: dynamic_batching: default_priority is 0",
            id="levels",
        ),
        pytest.param(
            'default_model_filename: "../m.onnx"', r"default_model_filename: .* must be a plain file name", id="above"
        ),
        pytest.param('default_model_filename: "a/m.onnx"', r"must be a plain file name", id="below"),
        pytest.param('default_model_filename: "/m.onnx"', r"must be a plain file name", id="root"),
        pytest.param('default_model_filename: ".m.onnx"', r"must be a plain file name", id="hidden"),
        pytest.param(r'default_model_filename: "m\000.onnx"', r"must be a plain file name", id="nul"),
    ],
)
def test_a_bad_triton_configuration_is_rejected_with_file_and_key(pbtxt: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ModelRejected, match=told):
        read_config(model_folder(tmp_path, pbtxt))


def test_the_model_file_may_have_another_name_and_its_report_counts(tmp_path: Path) -> None:
    folder = publish(tmp_path, "m")
    (folder / "model.onnx").rename(folder / "net.onnx")
    report = json.loads((folder / "report.json").read_text())
    report["files"]["net.onnx"] = report["files"].pop("model.onnx")
    (folder / "report.json").write_text(json.dumps(report))
    (folder.parent / "config.pbtxt").write_text('default_model_filename: "net.onnx"')
    (version,) = chosen_versions(versions(folder.parent), read_config(folder.parent))
    assert version.model_path == folder / "net.onnx"
    assert not version.stands_alone
    found = read_report(version)
    assert found is not None
    assert found.golden is not None


def test_a_model_of_several_files_may_be_a_folder(tmp_path: Path) -> None:
    """Triton, model_repository.md, "ONNX Models"."""
    folder = tmp_path / "m" / "1"
    path = save_model(folder / "model.onnx" / "model.onnx", LINEAR)
    model = onnx.load(path)
    (weights,) = model.graph.initializer
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights), weights.name))  # only raw data may go out
    onnx.save_model(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (path.parent / "weights.bin").stat().st_size == 6 * 4
    assert VersionDirectory(folder, 1).model_path == path
    assert [tensor.name for tensor in load_version(folder).metadata.inputs] == ["x"]


def test_a_configuration_is_called_by_the_name_that_its_caller_gives_when_it_has_none(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    assert read_config(folder, name="served", stands_alone=True).name == "served"
    (folder / "config.pbtxt").write_text('name: "own"')
    assert read_config(folder, name="served", stands_alone=True).name == "own"
    with pytest.raises(ModelRejected, match="make them agree"):
        read_config(folder)


def test_the_file_that_a_configuration_comes_from_is_no_part_of_it(tmp_path: Path) -> None:
    config = read_config(model_folder(tmp_path, ""))
    assert "file_name" not in config.model_dump()
    assert config.model_copy(update={"name": "n"}).file_name == "config.pbtxt"
    assert ModelConfig(name="m").file_name == "config.json"


DESCRIBED = PBTXT.replace("max_batch_size: 4", "")


@pytest.mark.parametrize(
    ("pbtxt", "told"),
    [
        pytest.param(DESCRIBED, "config.pbtxt does not set max_batch_size, which means 0 in Triton", id="implied"),
        pytest.param("max_batch_size: 0" + DESCRIBED, "config.pbtxt sets max_batch_size to 0", id="zero"),
        pytest.param(PBTXT, "config.pbtxt sets max_batch_size to 4", id="four"),
    ],
)
def test_a_batch_size_that_the_file_does_not_set_is_not_told_as_if_it_did(
    pbtxt: str, told: str, tmp_path: Path
) -> None:
    assert read_config(model_folder(tmp_path, pbtxt)).told_batch_size == told


def test_what_numbers_stand_for_and_what_no_graph_can_do_are_told(tmp_path: Path) -> None:
    written = {
        "name": "m",
        "notes": ["send the city as its number"],
        "inputs": [{"name": "city", "datatype": "INT64", "shape": [-1, 1], "categories": ["Paris", "Rome"]}],
    }
    (tmp_path / "config.json").write_text(json.dumps(written))

    config = read_config(tmp_path, name="m", stands_alone=True)

    assert config.notes == ("send the city as its number",)
    assert config.inputs[0].categories == ("Paris", "Rome")
    assert json.loads(to_json(config)) == written

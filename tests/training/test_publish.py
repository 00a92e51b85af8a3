"""Publishing: whole versions or nothing, whoever is killed, whatever is in the way."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from service import repository as layout
from service.datatypes import DATATYPES
from training import directories
from training.errors import UserError
from training.golden import Golden
from training.publish import DATATYPE_NAMES, STEPS, Draft, PublishRefused, check_destination, config_for, publish

TINY = """
<ir_version: 10, opset_import: ["" : 20]>
tiny (float[N, {width}] x) => (float[N, 2] y)
<float[{width}, 2] w = {{ {weights} }}>
{{ y = MatMul(x, w) }}
"""

ABOUT = {
    "x": {"description": "three numbers", "minimum": 0.0},
    "y": {"description": "two sums", "labels": layout.LABELS_FILE},
}


def tiny(width: int = 3, weight: float = 1.0) -> ir.Model:
    """y = x w with every weight the same."""
    return ir.from_onnx_text(TINY.format(width=width, weights=", ".join([str(weight)] * width * 2)))


def draft(name: str = "tiny", width: int = 3, weight: float = 1.0, **changes) -> Draft:
    model = tiny(width, weight)
    x = np.ones((4, width), np.float32)
    golden = Golden({"x": x}, {"y": np.full((4, 2), width * weight, np.float32)}, {"y": 1e-5})
    config = config_for(model, name=name, description="a test", max_batch_size=8, about=ABOUT)
    return dataclasses.replace(Draft(config, model, golden, {"train": {"accuracy": 0.5}}, ("no", "yes")), **changes)


def weight_of(version: layout.VersionDirectory) -> float:
    return float(ir.load(version.model_path).graph.initializers["w"].const_value.numpy()[0, 0])


def visible(repository: Path) -> dict[str, dict[int, float]]:
    """What the service's own discovery finds: name -> version -> the weight in it; every version must be whole."""
    found: dict[str, dict[int, float]] = {}
    for name in layout.model_names(repository):
        assert layout.read_config(repository / name).outputs[0].labels == layout.LABELS_FILE
        found[name] = {version.version: weight_of(version) for version in layout.versions(repository / name)}
        for version in layout.versions(repository / name):
            report = layout.read_report(version)
            assert report is not None
            assert {path.name for path in version.path.iterdir()} == {*report.files, layout.REPORT_FILE}
            for file, record in report.files.items():
                content = (version.path / file).read_bytes()
                assert (record.sha256, record.bytes) == (hashlib.sha256(content).hexdigest(), len(content))
    return found


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a forked child; its exit code, or minus the signal that killed it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at(step: str) -> Callable[[str], None]:
    def checkpoint(reached: str) -> None:
        if reached == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return checkpoint


def test_the_first_version_is_complete_and_described(tmp_path) -> None:
    version = publish(tmp_path / "new" / "repository", draft())

    assert (version.version, version.path) == (1, tmp_path / "new" / "repository" / "tiny" / "1")
    assert visible(version.path.parents[1]) == {"tiny": {1: 1.0}}
    config = layout.read_config(version.path.parent)
    assert [(tensor.name, tensor.datatype, tensor.shape) for tensor in (*config.inputs, *config.outputs)] == [
        ("x", "FP32", (-1, 3)),
        ("y", "FP32", (-1, 2)),
    ]
    assert (config.inputs[0].description, config.inputs[0].minimum, config.max_batch_size) == ("three numbers", 0.0, 8)
    assert (version.path / layout.LABELS_FILE).read_bytes() == b"no\nyes\n"
    with np.load(version.golden_path, allow_pickle=False) as golden:
        assert {name: (array.dtype, array.shape) for name, array in golden.items()} == {
            "input.x": (np.float32, (4, 3)),
            "output.y": (np.float32, (4, 2)),
        }
    report = json.loads(version.report_path.read_text())
    assert set(report) == {"files", "golden", "versions", "train"}
    assert report["golden"] == {"samples": 4, "tolerance": {"y": 1e-5}}
    assert {"python", "foldserve", "onnxruntime"} <= set(report["versions"])


def test_the_next_version_leaves_the_first_alone(tmp_path) -> None:
    publish(tmp_path, draft(weight=1.0))

    assert publish(tmp_path, draft(weight=2.0)).version == 2
    assert visible(tmp_path) == {"tiny": {1: 1.0, 2: 2.0}}


def test_the_next_version_follows_the_highest_not_the_count(tmp_path) -> None:
    publish(tmp_path, draft(), replace=7)

    assert publish(tmp_path, draft()).version == 8


@pytest.mark.parametrize("exchange", ["renameat2", "two renames"])
def test_replace_exchanges_one_version(exchange, monkeypatch, tmp_path) -> None:
    if exchange == "two renames":
        monkeypatch.setattr(directories, "_exchanged", lambda first, second: False)
    for weight in (1.0, 2.0):
        publish(tmp_path, draft(weight=weight))

    assert publish(tmp_path, draft(weight=9.0), replace=1).version == 1
    assert visible(tmp_path) == {"tiny": {1: 9.0, 2: 2.0}}


def test_publishing_leaves_nothing_but_the_model_readable_for_others(tmp_path) -> None:
    before = os.umask(0o022)
    try:
        version = publish(tmp_path, draft())
    finally:
        os.umask(before)

    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    modes = {stat.filemode(path.stat().st_mode) for path in (tmp_path / "tiny").rglob("*")}
    assert modes == {"drwxr-xr-x", "-rw-r--r--"}
    assert stat.filemode(version.path.parent.stat().st_mode) == "drwxr-xr-x"


def nothing(repository: Path) -> None:
    """Publish into an empty repository."""


def one_version(repository: Path) -> None:
    publish(repository, draft(weight=1.0))


@dataclasses.dataclass(frozen=True)
class Situation:
    """`replace`: what is asked for. `before`, `after`: versions and weights the service may see."""

    prepare: Callable[[Path], None]
    replace: int | None
    before: dict[str, dict[int, float]]
    after: dict[str, dict[int, float]]


SITUATIONS = {
    "first version": Situation(nothing, None, {}, {"tiny": {1: 2.0}}),
    "next version": Situation(one_version, None, {"tiny": {1: 1.0}}, {"tiny": {1: 1.0, 2: 2.0}}),
    "replaced version": Situation(one_version, 1, {"tiny": {1: 1.0}}, {"tiny": {1: 2.0}}),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("situation", SITUATIONS.values(), ids=SITUATIONS)
def test_killed_at_any_step_only_whole_versions_are_visible_and_the_next_publish_works(
    situation: Situation, step: str, tmp_path: Path
) -> None:
    situation.prepare(tmp_path)
    new = draft(weight=2.0)

    killed = in_child(lambda: publish(tmp_path, new, replace=situation.replace, checkpoint=die_at(step)))

    done = STEPS.index(step) >= STEPS.index("renamed")
    assert killed == -signal.SIGKILL
    assert visible(tmp_path) == (situation.after if done else situation.before)

    version = publish(tmp_path, draft(weight=3.0))

    assert visible(tmp_path)["tiny"][version.version] == 3.0
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"], "the killed one's leftovers are gone"


@pytest.mark.parametrize("situation", SITUATIONS.values(), ids=SITUATIONS)
def test_checkpoints_are_the_documented_steps_in_order(situation, tmp_path) -> None:
    situation.prepare(tmp_path)
    reached: list[str] = []

    publish(tmp_path, draft(), replace=situation.replace, checkpoint=reached.append)

    assert tuple(reached) == STEPS


@pytest.mark.parametrize("step", STEPS[: STEPS.index("renamed")])
def test_an_exception_at_any_step_before_the_rename_changes_nothing(step, tmp_path) -> None:
    publish(tmp_path, draft())

    def fail(reached: str) -> None:
        if reached == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(tmp_path, draft(weight=2.0), checkpoint=fail)
    assert visible(tmp_path) == {"tiny": {1: 1.0}}
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_concurrent_publishes_get_different_versions(tmp_path) -> None:
    """Threads in this process contend as processes do: flock belongs to the open file, not to the process."""
    drafts = [draft(weight=float(weight)) for weight in range(1, 7)]
    published: dict[int, float] = {}

    def one(new: Draft, weight: float) -> None:
        published[publish(tmp_path, new).version] = weight

    threads = [threading.Thread(target=one, args=(new, index + 1.0)) for index, new in enumerate(drafts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(published) == [1, 2, 3, 4, 5, 6]
    assert visible(tmp_path) == {"tiny": published}


def test_a_reader_sees_the_replaced_version_whole_at_every_moment(tmp_path) -> None:
    """A child replaces version 1 over and over, while this process reads it as the service does."""
    if not sys.platform.startswith("linux"):
        pytest.skip("without renameat2 there is a moment without the version")
    publish(tmp_path, draft(weight=0.0))
    drafts = [draft(weight=float(weight)) for weight in range(20)]
    child = os.fork()
    if child == 0:
        for new in drafts:
            publish(tmp_path, new, replace=1)
        os._exit(0)
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        assert [version.version for version in layout.versions(tmp_path / "tiny")] == [1]
    assert visible(tmp_path) == {"tiny": {1: 19.0}}


@pytest.mark.parametrize(
    ("new", "fragment"),
    [
        pytest.param(draft(width=4), "input 'x' FP32 [-1, 4]", id="another shape"),
        pytest.param(
            draft(labels=(), config=draft().config.model_copy(update={"outputs": ()})), "input 'x'", id="no outputs"
        ),
    ],
)
def test_another_signature_is_refused_under_the_same_name(new, fragment, tmp_path) -> None:
    publish(tmp_path, draft())

    with pytest.raises(PublishRefused) as caught:
        publish(tmp_path, new)

    text = str(caught.value)
    assert "is published with input 'x' FP32 [-1, 3]" in text
    assert fragment in text
    assert text.endswith("publish under another name")
    assert visible(tmp_path) == {"tiny": {1: 1.0}}


def test_a_version_made_by_hand_without_config_keeps_its_signature_too(tmp_path) -> None:
    (tmp_path / "tiny" / "3").mkdir(parents=True)
    ir.save(tiny(width=4), tmp_path / "tiny" / "3" / layout.MODEL_FILE)

    with pytest.raises(PublishRefused, match=r"is published with input 'x' FP32 \[-1, 4\]"):
        publish(tmp_path, draft(width=3))
    assert publish(tmp_path, draft(width=4)).version == 4


def test_the_operators_settings_survive_and_the_description_is_renewed(tmp_path) -> None:
    version = publish(tmp_path, draft())
    config = layout.read_config(version.path.parent)
    edited = {"max_batch_size": 3, "version_policy": {"latest": 2}, "scheduler": {"instances": 2}}
    path = version.path.parent / layout.CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | edited))

    publish(tmp_path, draft(config=config.model_copy(update={"description": "better"})))

    config = layout.read_config(version.path.parent)
    assert (config.max_batch_size, config.version_policy.latest, config.scheduler.instances) == (3, 2, 2)
    assert config.description == "better"


def test_labels_that_config_promises_must_come_with_the_version(tmp_path) -> None:
    publish(tmp_path, draft())
    config = config_for(tiny(), name="tiny", description="", max_batch_size=8, about={})

    with pytest.raises(PublishRefused, match=r"config.json promises \['labels.txt'\]"):
        publish(tmp_path, draft(config=config, labels=()))


def test_labels_are_not_promised_for_an_older_version_that_is_served_and_has_none(tmp_path) -> None:
    """It would become UNAVAILABLE by the publication of another version."""
    outputs = tuple(output.model_copy(update={"labels": None}) for output in draft().config.outputs)
    config = draft().config.model_copy(update={"outputs": outputs})
    publish(tmp_path, draft(config=config, labels=()))
    publish(tmp_path, draft(), replace=1)  # the only version: nothing else is served
    publish(tmp_path / "other", draft(config=config, labels=()))
    two = config.model_copy(update={"version_policy": layout.VersionPolicy(latest=2)})
    (tmp_path / "other" / "tiny" / layout.CONFIG_FILE).write_text(layout.to_json(two))
    with pytest.raises(PublishRefused, match=r"promise labels.txt for every version, but version 1 has none"):
        publish(tmp_path / "other", draft())


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        pytest.param((), "the draft brings no such file", id="none"),
        pytest.param(("no", "yes", "maybe"), "has 3 labels, but output 'y' has 2 values a row", id="one too many"),
    ],
)
def test_labels_must_fit_the_output_that_names_them(labels, text, tmp_path) -> None:
    with pytest.raises(PublishRefused, match=text):
        publish(tmp_path, draft(labels=labels))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", ".hidden", "../outside", "a/b", "-flag", "ünï", "a\nb", ".."])
def test_an_invalid_name_is_refused_before_anything_is_written(name, tmp_path) -> None:
    config = draft().config.model_copy(update={"name": name})

    with pytest.raises(PublishRefused, match="is not a model name"):
        publish(tmp_path, draft(config=config))
    with pytest.raises(PublishRefused, match="is not a model name"):
        check_destination(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_no_folder_can_have_is_refused_before_anything_is_written(tmp_path) -> None:
    with pytest.raises(PublishRefused, match=r"'x{40}'\.\.\. has 300 letters, expected a name of 200 at most"):
        check_destination(tmp_path, "x" * 300)
    check_destination(tmp_path, "x" * 200)
    assert list(tmp_path.iterdir()) == []


def test_a_version_that_does_not_exist_cannot_be_replaced(tmp_path) -> None:
    publish(tmp_path, draft())

    with pytest.raises(PublishRefused, match=r"has no version 5 to replace; it has 1"):
        publish(tmp_path, draft(), replace=5)


def test_replacing_version_1_of_a_model_without_versions_creates_it(tmp_path) -> None:
    assert publish(tmp_path, draft(), replace=1).version == 1


def a_file_for_the_repository(place: Path) -> Path:
    (place / "repository").write_text("")
    return place / "repository"


def a_file_for_the_model(place: Path) -> Path:
    (place / "tiny").write_text("")
    return place


def a_broken_link_for_the_model(place: Path) -> Path:
    (place / "tiny").symlink_to(place / "absent")
    return place


def a_broken_config(place: Path) -> Path:
    (place / "tiny").mkdir()
    (place / "tiny" / layout.CONFIG_FILE).write_text("{")
    return place


def version_numbers_at_their_end(place: Path) -> Path:
    (place / "tiny" / "9".ljust(18, "9")).mkdir(parents=True)
    return place


@pytest.mark.parametrize(
    ("obstacle", "text"),
    [
        pytest.param(a_file_for_the_repository, "File exists", id="repository is a file"),
        pytest.param(a_file_for_the_model, "is in the way: a model is a directory", id="model is a file"),
        pytest.param(a_broken_link_for_the_model, "is in the way: a model is a directory", id="model is a broken link"),
        pytest.param(a_broken_config, "config.json: the file is not JSON", id="config.json is damaged"),
        pytest.param(version_numbers_at_their_end, "would not find version 1000000000000000000", id="19 digits"),
    ],
)
def test_what_is_in_the_way_is_named_in_one_line(obstacle, text, tmp_path) -> None:
    repository = obstacle(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())

    with pytest.raises(UserError) as caught:
        publish(repository, draft())

    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A directory this process may read but not write; as root, by giving up root's rights for the test."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield place
        finally:
            if root:
                os.seteuid(0)
            place.chmod(0o755)


def test_a_read_only_repository_is_one_clear_line(read_only) -> None:
    with pytest.raises(PublishRefused) as caught:
        publish(read_only, draft())

    assert str(caught.value).startswith(f"cannot publish 'tiny' into '{read_only}': Permission denied")


@pytest.mark.parametrize("below", ["", "new/repository"], ids=["itself", "parent"])
def test_a_read_only_place_is_noticed_before_a_long_build(below, read_only) -> None:
    with pytest.raises(PublishRefused, match=f"{read_only} is not writable"):
        check_destination(read_only / below, "tiny")


@pytest.mark.parametrize("label", ["two\nlines", "", "a\u2028b"], ids=["line feed", "empty", "line separator"])
def test_a_label_that_is_not_one_line_is_refused(label, tmp_path) -> None:
    with pytest.raises(PublishRefused, match=r"cannot be written as one line of labels.txt"):
        publish(tmp_path, draft(labels=("no", label)))
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_is_no_json_publishes_nothing(tmp_path) -> None:
    with pytest.raises(ValueError, match="Out of range float values"):
        publish(tmp_path, draft(reports={"verify": float("nan")}))
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_the_service_cannot_serve_is_refused_by_name() -> None:
    model = tiny()
    model.graph.inputs[0].type = ir.TensorType(ir.DataType.BFLOAT16)

    with pytest.raises(PublishRefused, match="tensor 'x' has type BFLOAT16"):
        config_for(model, name="tiny", description="", max_batch_size=1, about={})


def test_datatype_names_are_the_services() -> None:
    """DATATYPE_NAMES repeats service/datatypes.py, which publish may not import: the two tables agree, but for BF16, of
    which an .npz cannot hold golden samples."""
    for onnx_type, name in DATATYPE_NAMES.items():
        row = DATATYPES[name]
        assert row.dtype == (np.dtype(object) if name == "BYTES" else onnx_type.numpy())
    assert set(DATATYPE_NAMES.values()) == set(DATATYPES) - {"BF16"}

"""Configurations and labels that mean harm: each model is UNAVAILABLE with words, and its neighbour answers."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.model_states import ModelStatus
from service.registry import Registry
from service.settings import Settings
from service.version_states import ModelState
from tests.service.handmade import LINEAR, save_version

CONFIG = "config.pbtxt"
LABELLED = """
input { name: "x" data_type: TYPE_FP32 dims: 2 }
output { name: "y" data_type: TYPE_FP32 dims: 3 label_filename: "NAME" }
max_batch_size: 4
"""


def _config(content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / CONFIG).write_bytes(content)


def _labels(name: str, target: str = "") -> Callable[[Path], Any]:
    """A configuration that names `name` for its labels, and a link of that name."""

    def damage(folder: Path) -> None:
        (folder / CONFIG).write_text(LABELLED.replace("NAME", name))
        if target:
            (folder / name).symlink_to(target)

    return damage


def _secret_beside_the_repository(folder: Path) -> None:
    (folder.parents[1] / "secret.txt").write_text("password\n")
    _labels("labels.txt", "../../secret.txt")(folder)


def _other_model_s_file(folder: Path) -> None:
    save_version(folder.parent, "other", LINEAR)
    (folder / CONFIG).write_text('default_model_filename: "../../other/1/model.onnx"')


HOSTILE = [
    pytest.param(_config(b" " * (1 << 18) + b"x"), "longer than 262144 bytes", id="huge"),
    pytest.param(_config(b"#" * (1 << 18)), "", id="a-long-comment-is-only-long"),
    pytest.param(_config(b"a{" * 130_000), "over 32 deep", id="deep"),
    pytest.param(_config(b"a[{" * 80_000), "over 32 deep", id="deep-lists"),
    pytest.param(_config(b"a<" * 20 + b"'" + b"x" * 260_000), "closing quote", id="open-string"),
    pytest.param(_config(b'name: "' + b"\\" * 260_001 + b'"'), "closing quote", id="backslashes"),
    pytest.param(_config(b"max_batch_size: " + b"9" * 260_000), "more than 64 bits", id="many-digits"),
    pytest.param(_config(b"dims: [" + b"1," * 130_000 + b"1]"), "dims is no key", id="long-list"),
    pytest.param(_config(b"input {} " * 29_000), "input '' lacks name, data_type, dims", id="many-tensors"),
    pytest.param(_config(b"max_batch_size: 2147483647"), "", id="largest-batch"),
    pytest.param(_config(b"instance_group { count: 2147483647 }"), "count is 2147483647; expected 64", id="instances"),
    pytest.param(_config(b'name: "m\xff"'), "byte 0xff is not UTF-8", id="not-utf-8"),
    pytest.param(_config(b"\xff\xfen\0a\0"), "byte 0xff is not UTF-8", id="utf-16"),
    pytest.param(_config(b"\0" * 1000), "a NUL character", id="zeros"),
    pytest.param(_config(b'name: "\\n\\033[2J"'), "is not a model name", id="terminal-escapes"),
    pytest.param(lambda f: os.mkfifo(f / CONFIG), "is not a regular file", id="named-pipe"),
    pytest.param(lambda f: (f / CONFIG).symlink_to("/dev/zero"), "leads out of the model repository", id="device"),
    pytest.param(lambda f: (f / CONFIG).symlink_to(CONFIG), "is not a regular file", id="link-to-itself"),
    pytest.param(lambda f: (f / CONFIG).mkdir(), "is not a regular file", id="folder"),
    pytest.param(_other_model_s_file, "must be a plain file name", id="another-model-s-file"),
    pytest.param(_labels("../../secret.txt"), "must be a plain file name", id="labels-above"),
    pytest.param(_labels("/etc/passwd"), "must be a plain file name", id="labels-from-the-root"),
    pytest.param(_labels("labels.txt", "/etc/passwd"), "leads out of the model repository", id="labels-linked"),
    pytest.param(_secret_beside_the_repository, "leads out of the model repository", id="labels-linked-upwards"),
    pytest.param(_labels("labels.txt", "/dev/zero"), "leads out of the model repository", id="labels-from-a-device"),
    pytest.param(_labels("labels.txt", "1"), "is not a regular file", id="labels-are-a-folder"),
]


def states(repository: Path) -> dict[str, ModelStatus]:
    async def load() -> dict[str, ModelStatus]:
        registry = Registry(Settings(model_repository=repository, intra_op_threads=1))
        await registry.load_all()
        found = {status.name: status for status in registry.states()}
        await registry.close()
        return found

    return asyncio.run(load())


@pytest.mark.timeout(30)
@pytest.mark.parametrize(("damage", "told"), HOSTILE)
def test_a_hostile_model_is_told_by_name_and_its_neighbour_serves(
    damage: Callable[[Path], Any], told: str, tmp_path: Path
) -> None:
    repository = tmp_path / "models"
    save_version(repository, "m", LINEAR)
    save_version(repository, "good", LINEAR)
    damage(repository / "m")
    found = states(repository)
    assert found["good"].state is ModelState.READY
    assert found["m"].state is (ModelState.UNAVAILABLE if told else ModelState.READY)
    reason = found["m"].reason
    assert re.search(told, reason), reason
    assert len(reason.splitlines()) == bool(told)
    assert len(reason) < 600
    for secret in (str(tmp_path), "password", "root:"):
        assert secret not in reason

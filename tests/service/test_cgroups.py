from __future__ import annotations

from pathlib import Path

import pytest

from service import cgroups


def written(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("lines", "folders"),
    [
        pytest.param("0::/\n", ["", "unified"], id="container"),
        pytest.param("0::/a/b\n", ["a/b", "a", "", "unified/a/b", "unified/a", "unified"], id="ancestors-bind-too"),
        pytest.param("4:memory:/a\n", [], id="version-1-only"),
    ],
)
def test_version_2_is_this_cgroup_and_its_ancestors(lines: str, folders: list[str], tmp_path: Path) -> None:
    root = written(tmp_path, "proc/self/cgroup", lines)
    assert list(cgroups.folders_v2(root)) == [root / "sys/fs/cgroup" / folder for folder in folders]


def test_version_1_is_the_controller_s_own_tree(tmp_path: Path) -> None:
    root = written(tmp_path, "proc/self/cgroup", "5:memory:/a:b\n4:cpu,cpuacct:/c\n0::/d\n")
    mount = root / "sys/fs/cgroup/memory"
    assert list(cgroups.folders_v1(root, "memory", "memory")) == [mount / "a:b", mount]


def test_a_file_that_is_not_there_holds_no_words(tmp_path: Path) -> None:
    root = written(tmp_path, "some", "one two\nthree\n")
    assert cgroups.words(root / "some") == ["one", "two", "three"]
    assert cgroups.words(root / "none") == []

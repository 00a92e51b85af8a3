"""The checkout holds what architecture.md's tree lists, and nothing that belongs to one person's machine."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP_LEVEL = {
    ".ci",
    ".dockerignore",
    ".gitignore",
    "Dockerfile",
    "LICENSE",
    "Makefile",
    "README.md",
    "constraints.txt",
    "models",
    "pyproject.toml",
    "service",
    "tests",
    "training",
}
PACKAGES = ("service", "training")
# Not text.
BINARY = {".onnx", ".npz", ".png"}

MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:work|root|home|Users|mnt|opt/pypi|tmp/[a-z]+)/(?=\w)")
REGISTRY = re.compile(
    r"\b(?:files\.pythonhosted\.org|(?:test\.)?pypi\.org|download\.pytorch\.org|index-url\s*=?\s*https?:)"
)
# The container's own /models and /opt/foldserve are part of the contract; KServe mounts /mnt/models (a later issue).
CONTRACT_PATH = re.compile(r"/mnt/models\b")


@pytest.fixture(scope="module")
def files(checkout: Path) -> tuple[Path, ...]:
    """Every file that is committed, or would be by `git add --all`; relative to the checkout."""
    if not (checkout / ".git").exists():
        return tuple(sorted(_walk(checkout)))
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=checkout, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return tuple(Path(name) for name in sorted(listing.split("\0")) if name and (checkout / name).exists())


def _walk(checkout: Path) -> Iterator[Path]:
    """Without git (an unpacked archive): everything but what tools leave behind."""
    left_behind = {
        "__pycache__",
        ".hypothesis",
        ".mypy_cache",
        ".pytest_cache",
        ".ruff_cache",
        ".import_linter_cache",
        "runs",
    }
    for path in checkout.rglob("*"):
        parts = path.relative_to(checkout).parts
        if path.is_file() and not left_behind & set(parts) and not parts[0].startswith(".venv"):
            yield path.relative_to(checkout)


def test_top_level_holds_only_the_names_of_the_tree(files: tuple[Path, ...]) -> None:
    assert {path.parts[0] for path in files} - TOP_LEVEL == set()


def test_folders_of_tests_mirror_the_packages(files: tuple[Path, ...], checkout: Path) -> None:
    """What is known about training/fold/ is tested in tests/training/fold/, and there is no other place for it.

    A folder of material alone (networks to fold) mirrors nothing.
    """
    tests = [path for path in files if path.parts[0] == "tests" and path.name.startswith("test_")]
    mirrored = {Path(*path.parts[1:-1]) for path in tests if path.parts[1] in PACKAGES}
    assert mirrored >= {Path(package) for package in PACKAGES}
    assert [str(folder) for folder in sorted(mirrored) if not (checkout / folder).is_dir()] == []


def test_every_source_file_begins_with_its_promise(files: tuple[Path, ...], checkout: Path) -> None:
    """A module docstring first: what the file is for, and what it does not know."""
    sources = [path for path in files if path.parts[0] in PACKAGES and path.suffix == ".py"]
    assert len(sources) > 30
    assert [str(path) for path in sources if not ast.get_docstring(ast.parse((checkout / path).read_text()))] == []


@pytest.mark.parametrize(
    "foreign",
    [pytest.param(MACHINE_PATH, id="paths-of-one-machine"), pytest.param(REGISTRY, id="package-registries")],
)
def test_no_file_mentions(foreign: re.Pattern[str], files: tuple[Path, ...], checkout: Path) -> None:
    found = []
    for path in files:
        if path.suffix in BINARY or path == Path("LICENSE") or path == Path(__file__).relative_to(checkout):
            continue
        for number, line in enumerate((checkout / path).read_text(errors="replace").splitlines(), start=1):
            if foreign.search(CONTRACT_PATH.sub("", line)):
                found.append(f"{path}:{number}: {line.strip()}")
    assert found == []


@pytest.mark.parametrize(
    ("line", "mentions"),
    [
        pytest.param("cd /work/main", True, id="checkout"),
        pytest.param('open("/root/x")', True, id="home-of-root"),
        pytest.param("/home/ann/data.csv", True, id="home"),
        pytest.param("POST /v2/models/digits/infer", False, id="route"),
        pytest.param("-v ./mine:/models:ro /opt/foldserve/bin", False, id="container"),
        pytest.param("the network /workers in it", False, id="prefix-of-a-word"),
    ],
)
def test_machine_paths_are_recognised(line: str, mentions: bool) -> None:
    assert bool(MACHINE_PATH.search(line)) == mentions

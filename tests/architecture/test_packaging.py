"""pyproject.toml, constraints.txt, Dockerfile and Makefile agree with each other, and give their reasons."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ADDRESS = re.compile(r"://|--(?:extra-)?index-url|--find-links|\s@\s")


@pytest.fixture(scope="module")
def project(checkout: Path) -> Mapping[str, Any]:
    table: Mapping[str, Any] = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    return table


@pytest.fixture(scope="module")
def pins(checkout: Path) -> Mapping[str, str]:
    """Canonical name to pinned version."""
    lines = (line.partition("#")[0].strip() for line in (checkout / "constraints.txt").read_text().splitlines())
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines if line)}


def requirements(project: Mapping[str, Any]) -> list[Requirement]:
    """Every direct dependency, base and extras, without the extras that only name other extras of ours."""
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    found = [Requirement(text) for group in groups for text in group]
    return [requirement for requirement in found if requirement.name != project["name"]]


def test_every_dependency_line_gives_its_reason(checkout: Path, project: Mapping[str, Any]) -> None:
    """One dependency a line, and behind it a comment that says what it is for."""
    text = (checkout / "pyproject.toml").read_text()
    arrays = re.findall(
        r"^\w+ = \[\n(.*?)^\]", text[text.index("dependencies = [") : text.index("[project.scripts]")], re.M | re.S
    )
    lines = [line for array in arrays for line in array.splitlines() if not line.strip().startswith('"foldserve[')]
    assert len(lines) == len(requirements(project)), "the pattern no longer finds the lines"
    assert [line for line in lines if not re.fullmatch(r'\s+"[^"]+",\s+# \S.{4,}', line)] == []


def test_constraints_pin_every_direct_dependency_within_its_range(
    project: Mapping[str, Any], pins: Mapping[str, str]
) -> None:
    wrong = [
        f"{requirement}: pinned {pins.get(canonicalize_name(requirement.name), 'nowhere')}"
        for requirement in requirements(project)
        if pins.get(canonicalize_name(requirement.name)) is None
        or not requirement.specifier.contains(pins[canonicalize_name(requirement.name)])
    ]
    assert wrong == []


def test_constraints_are_exact_pins_without_addresses(checkout: Path) -> None:
    lines = [line for line in (checkout / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)] == []
    assert lines == sorted(lines, key=lambda line: line.partition("==")[0].lower())


@pytest.mark.parametrize("name", ["Dockerfile", "Makefile", "constraints.txt", "pyproject.toml", ".ci/run"])
def test_no_package_index_is_named(name: str, checkout: Path) -> None:
    """Where packages come from is the builder's business: environment, pip's configuration, or a build secret."""
    lines = (line.partition("#")[0] for line in (checkout / name).read_text().splitlines())
    assert [line for line in lines if ADDRESS.search(line)] == []


def test_the_base_holds_nothing_of_training(project: Mapping[str, Any]) -> None:
    heavy = {"torch", "onnx", "onnx-ir", "onnxscript", "scikit-learn", "scipy", "pandas", "sympy"}
    assert heavy & {canonicalize_name(Requirement(text).name) for text in project["dependencies"]} == set()


def test_dockerfile_can_rename_onnxruntime_in_both_files(checkout: Path, pins: Mapping[str, str]) -> None:
    """The patterns that its `sed` looks for: one requirement, one pin."""
    assert (checkout / "pyproject.toml").read_text().count('"onnxruntime>=') == 1
    assert len(re.findall(r"^onnxruntime==", (checkout / "constraints.txt").read_text(), re.M)) == 1
    dockerfile = (checkout / "Dockerfile").read_text()
    assert 's/\\"onnxruntime>=/' in dockerfile
    assert "s/^onnxruntime==/" in dockerfile


def test_image_gets_no_more_than_serving_needs(checkout: Path) -> None:
    """.dockerignore refuses everything and lets in a short list; the last stage copies only what the first one made."""
    ignore = (checkout / ".dockerignore").read_text().splitlines()
    assert ignore[1] == "*"
    assert [line for line in ignore if line.startswith("!")] == [
        f"!{name}" for name in ("constraints.txt", "LICENSE", "models", "pyproject.toml", "README.md", "service")
    ]
    last_stage = (checkout / "Dockerfile").read_text().rsplit("\nFROM ", 1)[1]
    copies = re.findall(r"^COPY (.*)$", last_stage, re.M)
    assert copies == [f"--from=build {folder} {folder}" for folder in ("/opt/venv", "/opt/foldserve", "/models")]
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", last_stage, re.M)
    assert re.search(r'^ENTRYPOINT \["foldserve"\]$', last_stage, re.M)


def test_makefile_keeps_one_line_a_target(checkout: Path) -> None:
    recipes = re.findall(r"^([\w./%-]+):.*\n((?:\t.*\n)*)", (checkout / "Makefile").read_text(), re.M)
    assert len(recipes) > 5
    assert [target for target, recipe in recipes if recipe.count("\n") > 1] == []


def installed_for(*wanted: tuple[str, frozenset[str]]) -> set[str]:
    """Names and extras, and all that these require, as installed here."""
    waiting, seen = list(wanted), set[tuple[str, frozenset[str]]]()
    while waiting:
        name, extras = place = waiting.pop()
        if place in seen:
            continue
        seen.add(place)
        for requirement in map(Requirement, metadata.requires(name) or []):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in {*extras, ""}):
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return {name for name, _ in seen}


def test_training_brings_at_most_15_packages_beyond_torch_the_service_and_the_fold() -> None:
    there = installed_for(("torch", frozenset()), ("foldserve", frozenset({"fold"})))

    brought = installed_for(("foldserve", frozenset({"training"}))) - there

    assert len(brought) <= 15, sorted(brought)
    assert {"scikit-learn", "scipy"} <= brought, "the search no longer finds what is required"

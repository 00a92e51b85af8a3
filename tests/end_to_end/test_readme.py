"""The examples of README.md and training/README.md are run as they stand, so that what a reader pastes works.

An example is a fenced `bash`, `console` or `python` block right below the HTML comment `<!-- run: NAME -->`:

    bash       the block is one script (bash -euo pipefail)
    console    the lines that start with "$ " are that script; the others show output and are not compared
    python     the block is one program

Examples run in the order of the page, with the commands of this virtual environment on PATH, in one scratch folder that
holds a copy of models/: a later example finds what an earlier one wrote. Where an example names 127.0.0.1:8000,
foldserve serves that copy meanwhile, and its actual address is put in. An example must end with code 0; a
block below `<!-- prints: NAME -->` must then be, white space aside, what it printed to stdout.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.end_to_end.running import COMMANDS, PATIENCE_S, Foldserve, clean_environment, foldserve

ROOT = Path(__file__).resolve().parents[2]
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "training/README.md")}
ADDRESS = "127.0.0.1:8000"
MARKED_BLOCK = re.compile(r"^<!-- (run|prints): (\S+) -->\n+```(\w*)[^\n]*\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Example:
    """`expected` None: the page does not say what it prints."""

    name: str
    language: str
    code: str
    expected: str | None


def examples(page: str) -> list[Example]:
    """The marked blocks of `page`, in order."""
    blocks = MARKED_BLOCK.findall(page)
    prints = {name: code for kind, name, _, code in blocks if kind == "prints"}
    return [Example(name, language, code, prints.get(name)) for kind, name, language, code in blocks if kind == "run"]


def command(example: Example, code: str) -> list[str]:
    """The program that runs it."""
    if example.language == "console":
        code = "\n".join(line.removeprefix("$ ") for line in code.splitlines() if line.startswith("$ "))
    if example.language == "python":
        return [sys.executable, "-c", code]
    return ["bash", "-euo", "pipefail", "-c", code]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> Path:
    scratch = tmp_path_factory.mktemp("readme")
    shutil.copytree(checkout / "models", scratch / "models")
    return scratch


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Foldserve]:
    with foldserve("--model-repository", folder / "models") as running:
        yield running


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_readme_has_examples_that_are_run(page: str) -> None:
    found = examples(page)
    assert found, "no block is marked <!-- run: NAME -->"
    assert len(found) == page.count("<!-- run:"), "a <!-- run: ... --> has no fenced block right below it"
    assert len({example.name for example in found}) == len(found), "two examples share a name"
    assert {example.language for example in found} <= {"bash", "console", "python"}


@pytest.mark.parametrize(
    "example", [pytest.param(one, id=one.name) for page in PAGES.values() for one in examples(page)]
)
def test_example(example: Example, folder: Path, request: pytest.FixtureRequest) -> None:
    code = example.code
    if code.startswith("curl ") and shutil.which("curl") is None:
        pytest.skip("curl is not installed")  # nothing but Python and make has to be
    if ADDRESS in code:
        code = code.replace(ADDRESS, request.getfixturevalue("served").address)
    ran = subprocess.run(
        command(example, code),
        cwd=folder,
        env=clean_environment({"PATH": f"{COMMANDS}{os.pathsep}{os.environ['PATH']}"}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE_S,
        check=False,
    )
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
    if example.expected is not None:
        assert ran.stdout.split() == example.expected.split()


PAGE = """
<!-- run: one -->
```bash
echo a  b
```
<!-- prints: one -->
```
a b
```
```bash
exit 1  # not marked
```
<!-- run: two -->

```console
$ x=3
it says nothing
$ test $x = 3
```
"""


def test_the_marks_mean_what_the_docstring_says() -> None:
    one, two = examples(PAGE)
    assert one == Example("one", "bash", "echo a  b\n", "a b\n")
    assert command(two, two.code)[-1] == "x=3\ntest $x = 3"

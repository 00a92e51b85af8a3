"""KServe's REST client, unmodified, against the real command. Its packages do not go with ours (protobuf), so it runs
in an environment of its own: `make test-clients` makes it, and without it these tests are skipped."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.running import PATIENCE_S, clean_environment, foldserve
from tests.service.handmade import DOUBLE, save_version

SCRIPT = Path(__file__).with_name("kserve_client.py")


@pytest.fixture(scope="module")
def interpreter(checkout: Path) -> Path:
    python = checkout / ".venv-bench" / "kserve" / "bin" / "python"
    if not python.exists():
        pytest.skip("KServe's client is not installed: make test-clients")
    return python


@pytest.fixture(scope="module")
def found(interpreter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the client made of our answers, by what it asked."""
    repository = tmp_path_factory.mktemp("models")
    save_version(repository, "double", DOUBLE)
    (save_version(repository, "broken") / "model.onnx").write_bytes(b"nonsense")
    with foldserve("--model-repository", repository, "--no-strict-readiness") as service:
        ran = subprocess.run(
            [interpreter, SCRIPT, service.url],
            env=clean_environment({"NO_PROXY": "*"}),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    assert ran.returncode == 0, ran.stderr
    answers: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    yield answers


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("v2 live", True),
        ("v2 ready", True),
        ("v2 model ready", True),
        ("v2 broken model ready", False),
        ("v1 live", True),
        ("v1 model ready", True),
        ("v1 broken model ready", False),
    ],
)
def test_health(question: str, answer: bool, found: dict[str, Any]) -> None:
    assert found[question] is answer


@pytest.mark.parametrize(("question", "identifier"), [("v2 json", None), ("v2 binary", "q")])
def test_v2_answer_is_read_as_tensors(question: str, identifier: str | None, found: dict[str, Any]) -> None:
    answer = found[question]
    assert answer["outputs"] == {"y": ["FP32", [2, 2], [[3, -4], [6, 8.5]]]}
    assert answer["model_name"] == "double"
    if identifier is not None:
        assert answer["id"] == identifier


def test_v1_answer_has_a_prediction_for_each_instance(found: dict[str, Any]) -> None:
    assert found["v1 predict"] == {"predictions": [[3, -4], [6, 8]]}


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("v2 unknown model", "HTTPStatusError: model 'none' is not in the repository; it holds broken, double, '404 "),
        (
            "v2 misfit",
            "HTTPStatusError: input 'x': shape [1, 3] has 3 in dimension 1, model 'double' expects [-1, 2], '400 ",
        ),
        ("v1 unknown model", "HTTPStatusError: model 'none' is not in the repository; it holds broken, double, '404 "),
    ],
)
def test_refusals_reach_the_caller_in_our_words(question: str, words: str, found: dict[str, Any]) -> None:
    assert found[question].startswith(words)

"""kill -9 at each step of publishing, then the real service: it serves the old version or the new one, never a half."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.end_to_end.material import DIGITS, image_input
from tests.end_to_end.running import clean_environment, foldserve
from training.datasets.dataset import Examples
from training.publish import STEPS

VISIBLE_FROM = STEPS.index("renamed")

Publish = Callable[..., int]


@dataclass(frozen=True)
class Situation:
    """What is published into, and which versions a client can see before and after."""

    name: str
    existing: int
    replace: str
    before: tuple[str, ...]
    after: tuple[str, ...]

    def expected(self, step: str) -> tuple[str, ...]:
        return self.after if STEPS.index(step) >= VISIBLE_FROM else self.before


SITUATIONS = (
    Situation("first-version", existing=0, replace="-", before=(), after=("1",)),
    Situation("next-version", existing=1, replace="-", before=("1",), after=("2",)),
    Situation("replaced-version", existing=1, replace="1", before=("1",), after=("1",)),
)


@pytest.fixture(scope="module")
def publish(checkout: Path) -> Iterator[Publish]:
    """publish(repository, name, replace="-", step="-") in a process of its own; returns its exit code."""
    script = Path(__file__).with_name("publish_killed.py")
    with subprocess.Popen(
        [sys.executable, str(script), str(checkout / "models" / DIGITS)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=clean_environment(),
    ) as process:  # fmt: skip

        def one(repository: Path, name: str, replace: str = "-", step: str = "-") -> int:
            assert process.stdin
            assert process.stdout
            process.stdin.write(f"{repository} {name} {replace} {step}\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        yield one


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("situation", [pytest.param(situation, id=situation.name) for situation in SITUATIONS])
def test_service_never_picks_up_half_a_version(
    situation: Situation, step: str, publish: Publish, tmp_path: Path, held_out: Examples
) -> None:
    assert publish(tmp_path, "bystander") == 0
    for _ in range(situation.existing):
        assert publish(tmp_path, "model") == 0
    assert publish(tmp_path, "model", situation.replace, step) == -signal.SIGKILL
    with foldserve("--model-repository", tmp_path) as service:  # strict readiness: whatever is visible is whole
        metadata = service.get("/v2/models/model")
        versions = tuple(metadata.json()["versions"]) if metadata.status == 200 else ()
        assert versions == situation.expected(step)
        expected_status = 200 if versions else 404
        assert service.infer("model", image_input(held_out.only[:1])).status == expected_status
        assert service.infer("bystander", image_input(held_out.only[:1])).status == 200


@pytest.mark.parametrize("step", STEPS)
def test_next_publish_cleans_up_after_the_killed_one(step: str, publish: Publish, tmp_path: Path) -> None:
    assert publish(tmp_path, "model", "-", step) == -signal.SIGKILL
    assert publish(tmp_path, "model") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    versions = 2 if STEPS.index(step) >= VISIBLE_FROM else 1
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        *map(str, range(1, versions + 1)),
        "config.json",
    ]

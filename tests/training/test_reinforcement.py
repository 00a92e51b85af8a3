"""Policies learned in an environment lose their batch renormalisation on the way to the service, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from sb3_contrib.common.torch_layers import BatchRenorm1d
from torch import nn

from tests.end_to_end.running import foldserve, run_command
from training import reinforcement
from training.reinforcement import CrossQ, PolicyResult, ReinforcementFailed, build_policy, learn, plain

STEPS = 120  # CrossQ collects a hundred before it learns
WISHES = CrossQ("Pendulum-v1", STEPS, widths=(8, 8))


@pytest.fixture(scope="module", autouse=True)
def _few_episodes() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reinforcement, "EPISODES", 1)
        yield


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def published(repository: Path) -> PolicyResult:
    return build_policy(WISHES, "pendulum", repository)


def batch_renorm() -> BatchRenorm1d:
    layer = BatchRenorm1d(5)
    generator = torch.Generator().manual_seed(0)
    for tensor in (layer.ra_mean, layer.ra_var, layer.scale.data, layer.bias.data):
        tensor.copy_(torch.rand(5, generator=generator) + 0.5)
    return layer.eval()


def test_batch_renormalisation_becomes_the_batchnorm_that_answers_alike() -> None:
    layer = batch_renorm()
    rows = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(plain(layer)(rows), layer(rows), rtol=1e-6, atol=1e-6)


def test_any_other_layer_is_itself() -> None:
    layer = nn.Linear(3, 2)
    assert plain(layer) is layer


def test_every_normalisation_of_a_learned_policy_is_folded(published: PolicyResult) -> None:
    assert published.fold.summary()["found"] == published.fold.summary()["folded"] == 3
    assert published.path.name == "1"
    report = json.loads((published.path / "report.json").read_text())
    assert report["train"]["environment"] == "Pendulum-v1"


def test_the_served_policy_acts_within_bounds(published: PolicyResult, repository: Path) -> None:
    space = gymnasium.make("Pendulum-v1").action_space
    rows = np.random.default_rng(0).normal(scale=100.0, size=(16, 3)).astype(np.float32)
    given = {"name": "observation", "datatype": "FP32", "shape": [16, 3], "data": rows.ravel().tolist()}
    with foldserve("--model-repository", repository) as service:
        (action,) = service.infer("pendulum", given).json()["outputs"]
    assert action["shape"] == [16, 1]
    assert len(set(action["data"])) > 1
    assert space.low.min() <= min(action["data"]) <= max(action["data"]) <= space.high.max()


def test_equal_wishes_give_equal_policies(published: PolicyResult, tmp_path: Path) -> None:
    again = build_policy(WISHES, "pendulum", tmp_path)
    assert (again.path / "model.onnx").read_bytes() == (published.path / "model.onnx").read_bytes()


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ("Pendulum-v99", "Pendulum-v99: "),
        ("CartPole-v1", "CartPole-v1: actions are Discrete(2); CrossQ needs a vector of numbers within bounds (Box)"),
        ("CliffWalking-v1", "CliffWalking-v1: observations are Discrete(48); expected one vector of numbers (Box)"),
    ],
)
def test_what_cannot_be_learned_is_told_at_once(environment: str, told: str) -> None:
    with pytest.raises(ReinforcementFailed) as caught:
        learn(CrossQ(environment, STEPS))
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


def test_the_command_tells_it_in_one_line_and_writes_nothing(tmp_path: Path) -> None:
    done = run_command("foldtrain", "crossq", "Nowhere-v0", "--repository", tmp_path / "models")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("foldtrain: error: Nowhere-v0: ")
    assert not (tmp_path / "models").exists()


def test_a_policy_below_the_asked_return_is_not_published(tmp_path: Path) -> None:
    wishes = CrossQ("Pendulum-v1", STEPS, widths=(8, 8), minimum_return=0.0)
    with pytest.raises(ReinforcementFailed, match=r"the mean return is -.*asked for is 0; nothing was published"):
        build_policy(wishes, "pendulum", tmp_path)
    assert not (tmp_path / "pendulum").exists()

"""CrossQ (arXiv 1902.05605) on a Gymnasium environment, through sb3-contrib, to a policy without any normalisation.

    environment -> CrossQ learns -> its actor as a network of plain layers -> export, fold, verify, publish

CrossQ normalises the observation and every layer by batch renormalisation (arXiv 1702.03275), whose formula in eval
mode is BatchNorm's; with each in front of a Linear layer, all fold away. The loop, the replay buffer and the critics
are sb3-contrib's. Takes one observation vector and an action within bounds (Gymnasium's Box); such a run cannot be
resumed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from training import verify
from training.errors import UserError
from training.export import export
from training.fold import FoldReport, fold
from training.golden import make_golden
from training.publish import Draft, check_destination, config_for, publish
from training.user_code import first_line
from training.verify_report import VerifyReport

OBSERVATION, ACTION = "observation", "action"
EPISODES = 5
GOLDEN_ROWS = 8
VERIFY_ROWS = 256


class ReinforcementFailed(UserError):
    """The environment is not one that CrossQ can learn, or what was learned is not what was asked for."""


@dataclass(frozen=True, slots=True)
class CrossQ:
    """steps: in the environment. widths: of the actor's hidden layers. minimum_return: below it nothing is published;
    None: anything is. threads: fixed, because another number rounds differently."""

    environment: str
    steps: int
    seed: int = 0
    widths: tuple[int, ...] = (64, 64)
    minimum_return: float | None = None
    threads: int = 1


@dataclass(frozen=True, slots=True)
class PolicyResult:
    """What was published, where, and how good it is: the mean and standard deviation of episodes' returns."""

    path: Path
    mean_return: float
    return_std: float
    fold: FoldReport
    verify: VerifyReport

    def as_text(self) -> str:
        """The summary for a terminal."""
        folded = self.fold.summary()
        lines = (
            f"published {self.path}",
            f"return: {self.mean_return:.4g} +- {self.return_std:.3g}, of {EPISODES} episodes of the folded policy",
            f"folded: {folded['found']} BatchNormalization found, {folded['folded']} folded",
            self.verify.as_text(),
        )
        return "\n".join([*lines, f"serve it: foldserve --model-repository {self.path.parents[1]}"])


class Policy(nn.Module):
    """observation: float32 [rows, features] -> the best action: float32 [rows, actions], within its bounds."""

    low: torch.Tensor
    span: torch.Tensor

    def __init__(self, actor: nn.Module, low: np.ndarray[Any, Any], high: np.ndarray[Any, Any]) -> None:
        """actor: sb3-contrib's, of CrossQ."""
        super().__init__()
        self.layers = nn.Sequential(*(plain(layer) for layer in actor.latent_pi), plain(actor.mu))  # type: ignore[union-attr,arg-type]
        self.register_buffer("low", torch.from_numpy(low.astype(np.float32)))
        self.register_buffer("span", torch.from_numpy((high.astype(np.float64) - low).astype(np.float32)))

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        squashed = torch.tanh(self.layers(observation))
        return self.low + (0.5 * (squashed + 1.0)) * self.span


def plain(layer: nn.Module) -> nn.Module:
    """Batch renormalisation in eval mode, (x - ra_mean) / sqrt(ra_var + eps) * scale + bias, is BatchNorm; any other
    layer is itself. Told by its buffers: it is a subclass of nothing."""
    if not (hasattr(layer, "ra_mean") and hasattr(layer, "ra_var")):
        return layer
    renorm: Any = layer
    norm = nn.BatchNorm1d(len(renorm.ra_mean), eps=renorm.eps, momentum=renorm.momentum, affine=bool(renorm.affine))
    state = {"running_mean": renorm.ra_mean, "running_var": renorm.ra_var}
    if renorm.affine:
        state |= {"weight": renorm.scale, "bias": renorm.bias}
    norm.load_state_dict(state, strict=False)
    return norm.eval()


def build_policy(
    wishes: CrossQ,
    name: str,
    repository: Path,
    *,
    replace: int | None = None,
    announce: Callable[[str], None] = lambda _: None,
) -> PolicyResult:
    """Learns, and publishes the actor as the next version of `name`, or in place of `replace`. Raises UserError or
    FoldError; nothing is published then."""
    check_destination(repository, name, replace)
    announce(f"train    CrossQ on {wishes.environment}, {wishes.steps} steps")
    environment, policy = learn(wishes)
    announce("export   torch module to ONNX")
    first, _ = episodes(environment, policy_of(policy), wishes.seed)
    source = export(policy, {OBSERVATION: torch.from_numpy(first[:2])}, [ACTION])
    announce("fold     batch renormalisation into the weights behind it")
    folded, fold_report = fold(source)
    left = [outcome for outcome in fold_report.batchnorms if outcome.reason]
    if left:
        raise ReinforcementFailed(f"{len(left)} normalisations are left: {left[0].name}: {left[0].reason}")
    announce("verify   folded against unfolded")
    every = max(1, len(first) // VERIFY_ROWS)
    report = verify.verify(source, folded, list(verify.make_samples(source, [{OBSERVATION: first[::every]}])))
    seen, returns = episodes(
        environment, lambda rows: verify.run(folded, {OBSERVATION: rows})[ACTION], wishes.seed + EPISODES
    )
    mean, std = float(np.mean(returns)), float(np.std(returns))
    if wishes.minimum_return is not None and not mean >= wishes.minimum_return:
        raise ReinforcementFailed(
            f"{wishes.environment}: the mean return is {mean:.4g} after {wishes.steps} steps, asked for is "
            f"{wishes.minimum_return:g}; nothing was published. Learn for more --steps"
        )
    announce("publish  a new version, whole or not at all")
    samples = {OBSERVATION: seen[:: max(1, len(seen) // GOLDEN_ROWS)][:GOLDEN_ROWS]}
    draft = Draft(
        config=_describe(folded, wishes, name, environment),
        model=folded,
        golden=make_golden(source, folded, samples),
        reports={
            "train": {**asdict(wishes), "mean_return": mean, "return_std": std, "episodes": EPISODES},
            "fold": fold_report.as_dict(),
            "verify": report.as_dict(),
        },
    )
    version = publish(repository, draft, replace=replace)
    return PolicyResult(version.path, mean, std, fold_report, report)


def learn(wishes: CrossQ) -> tuple[Any, Policy]:
    """The environment and what was learned there. Equal wishes give equal weights. Raises ReinforcementFailed."""
    import gymnasium
    from sb3_contrib import CrossQ as Algorithm

    try:
        environment = gymnasium.make(wishes.environment)
    except gymnasium.error.Error as error:
        raise ReinforcementFailed(f"{wishes.environment}: {first_line(error)}") from error
    _refuse_unless_box(wishes.environment, environment)
    threads = torch.get_num_threads()
    torch.set_num_threads(wishes.threads)
    try:
        algorithm = Algorithm(
            "MlpPolicy", environment, seed=wishes.seed, device="cpu",
            policy_kwargs={"net_arch": {"pi": list(wishes.widths), "qf": [2 * width for width in wishes.widths]}},
        )  # fmt: skip
        algorithm.learn(wishes.steps)
    finally:
        torch.set_num_threads(threads)
    space: Any = environment.action_space
    return environment, Policy(algorithm.policy.actor, space.low, space.high).eval()


def policy_of(policy: Policy) -> Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """In NumPy."""

    def act(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with torch.inference_mode():
            actions: np.ndarray[Any, Any] = policy(torch.from_numpy(rows)).numpy()
        return actions

    return act


def episodes(
    environment: Any, act: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]], seed: int
) -> tuple[np.ndarray[Any, Any], list[float]]:
    """Plays `EPISODES` of them; returns every observation, float32 [rows, features], and each episode's return."""
    seen: list[np.ndarray[Any, Any]] = []
    returns = []
    for number in range(EPISODES):
        observation, _ = environment.reset(seed=seed + number)
        total, over = 0.0, False
        while not over:
            row = np.asarray(observation, np.float32)
            seen.append(row)
            observation, reward, terminated, truncated, _ = environment.step(act(row[np.newaxis])[0])
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    return np.stack(seen), returns


def _refuse_unless_box(name: str, environment: Any) -> None:
    from gymnasium.spaces import Box

    seen, done = environment.observation_space, environment.action_space
    if not isinstance(seen, Box) or len(seen.shape) != 1:
        raise ReinforcementFailed(f"{name}: observations are {seen}; expected one vector of numbers (Box)")
    if not isinstance(done, Box) or len(done.shape) != 1 or not done.is_bounded():
        raise ReinforcementFailed(f"{name}: actions are {done}; CrossQ needs a vector of numbers within bounds (Box)")


def _describe(folded: Any, wishes: CrossQ, name: str, environment: Any) -> Any:
    space = environment.action_space
    about = {
        OBSERVATION: {"description": f"one observation of {wishes.environment} a row, as the environment gives it"},
        ACTION: {
            "description": f"the action to take, each number from {space.low.tolist()} to {space.high.tolist()}",
        },
    }
    return config_for(
        folded, name=name, description=f"A policy for {wishes.environment}, learned by CrossQ", max_batch_size=64,
        about=about,
    )  # fmt: skip

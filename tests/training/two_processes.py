"""A small training that test_distributed.py runs twice: by one process, and by two that torchrun starts.

python -m tests.training.two_processes FOLDER: leaves what each process has computed as FOLDER/RANK-of-COUNT.pt.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import torch
from torch import nn
from torch.nn import functional

from training.bn.population import estimate
from training.distributed import Processes, joined
from training.errors import UserError
from training.export import export
from training.fold import fold

FEATURES, CLASSES, STEPS, ROWS = 6, 3, 3, 13
OWN = ((2, 11), (7, 6), (12, 1))
"""Rows of the two processes in each step."""


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(FEATURES, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(),
        nn.Linear(8, CLASSES),
    )  # fmt: skip


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of all processes together."""
    generator = torch.Generator().manual_seed(step)
    rows = 3 * torch.randn(ROWS, FEATURES, generator=generator) + 5
    return rows, torch.randint(CLASSES, (ROWS,), generator=generator)


def agreed(processes: Processes) -> dict[str, object]:
    """What the processes say to each other beside gradients."""

    def refuse() -> None:
        raise UserError(f"process {processes.rank} refuses")

    return {
        "of first": processes.of_first(lambda: processes.rank),
        "sum": processes.sum([1.0 + processes.rank, 0.5]),
        "refused": refusal(lambda: processes.of_first(refuse)),
        "not the same": refusal(lambda: processes.require_same(str(processes.rank), "rank")),
    }


def refusal(ask: Callable[[], None]) -> str:
    try:
        ask()
    except UserError as error:
        return str(error)
    return ""


def work(processes: Processes, folder: Path) -> None:
    torch.manual_seed(processes.rank)  # whoever is not the first begins with other weights, and must not keep them
    module, found = network().train(), {}
    processes.prepare(module)
    optimiser = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    for step in range(STEPS):
        cut = OWN[step] if processes.count > 1 else (ROWS,)
        inputs, labels = (part.split(cut)[processes.rank] for part in batch(step))
        answers = module(inputs)
        optimiser.zero_grad()
        (functional.cross_entropy(answers, labels, reduction="sum") / ROWS).backward()
        processes.sum_gradients(module)
        found[f"answers {step}"] = answers.detach()
        found |= {f"gradient {step} {name}": one.grad.clone() for name, one in module.named_parameters()}
        found |= {f"buffer {step} {name}": one.clone() for name, one in module.named_buffers()}
        optimiser.step()
    estimate(module.eval(), [processes.share(batch(0)[0])])
    processes.finish(module)
    folded, _ = fold(export(module, {"x": batch(0)[0]}, ["logits"]))
    exported = hashlib.sha256(ir.to_proto(folded).SerializeToString()).hexdigest()
    left = sum("Norm" in node.op_type for node in folded.graph.all_nodes())
    torch.save(
        {"found": found, "end": dict(module.state_dict()), "exported": exported, "norms left": left}
        | {"agreed": agreed(processes)},
        folder / f"{processes.rank}-of-{processes.count}.pt",
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined() as processes:
        work(processes, Path(sys.argv[1]))

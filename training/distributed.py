"""One training over several processes, as torchrun starts them: they compute what one process with all rows would.

    torchrun --nproc-per-node 2 ...      RANK, WORLD_SIZE and where to meet, in the environment

    joined() -> Processes                          alone, where nobody has started others
    prepare(module)                                the first process's weights; BatchNorm over the rows of all
    share(rows); loss = sum over own rows / all rows; backward; sum_gradients(module)
    finish(module)                                 plain BatchNorm again, and the same bits everywhere

torch's DistributedDataParallel averages the processes' gradients however many rows each has, and its SyncBatchNorm
refuses a CPU; ours weighs by rows and works on gloo. Every process takes part in every step, with any number of rows.
Knows no loop and no data.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed, nn

from training.bn.layers import without_statistics
from training.bn.replacing import replace
from training.bn.variants import BatchRenorm, FrozenBatchNorm, GhostBatchNorm, MaskedBatchNorm
from training.errors import UserError

_OF_ONE_PROCESS = (BatchRenorm, FrozenBatchNorm, GhostBatchNorm, MaskedBatchNorm)


class CannotDistribute(UserError):
    """The network, or what torchrun has said, does not allow it."""


@contextmanager
def joined(backend: str = "gloo") -> Iterator[Processes]:
    """Inside, the processes of this run know each other. Raises CannotDistribute where they do not meet."""
    count = _told("WORLD_SIZE", 1)
    if count == 1:
        yield Processes()
        return
    try:
        distributed.init_process_group(backend)
    except (RuntimeError, ValueError) as error:
        raise CannotDistribute(f"the {count} processes of this run do not meet: {error}") from error
    try:
        yield Processes(_told("RANK", 0), count)
    finally:
        distributed.destroy_process_group()


def _told(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not (text.isascii() and text.isdigit()):
        raise CannotDistribute(f"{name}={text!r} in the environment is no number; start with torchrun")
    return int(text)


@dataclass(frozen=True, slots=True)
class Processes:
    """Those of one run; without torchrun, this one alone, for which nothing below changes anything."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Who writes files."""
        return self.rank == 0

    def share(self, rows: torch.Tensor) -> torch.Tensor:
        """This process's part of a batch; parts differ by one row at most."""
        return rows.tensor_split(self.count)[self.rank]

    def prepare(self, module: nn.Module) -> None:
        """Weights and statistics of the first process, and BatchNorm over the rows of all, in place. Raises
        CannotDistribute for normalisations that would learn from one process's rows alone."""
        if self.count == 1:
            return
        for name, inner in module.named_modules():
            if isinstance(inner, _OF_ONE_PROCESS):
                raise CannotDistribute(
                    f"layer {name!r} is a {type(inner).__name__}, whose statistics would differ between the "
                    f"{self.count} processes; expected BatchNorm, or one process"
                )
        if bare := without_statistics(module):
            raise CannotDistribute(
                f"layer {bare[0][0]!r} keeps no running statistics; expected track_running_stats=True"
            )
        replace(module, "sync")
        for tensor in module.state_dict().values():
            distributed.broadcast(tensor, 0)

    def sum_gradients(self, module: nn.Module) -> None:
        """Behind `backward`: gradients of the loss over all rows, in every process. In one message."""
        if self.count == 1:
            return
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        # One that this process's rows did not reach may have been reached by others'.
        gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in trained]
        message = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(message)
        for parameter, piece in zip(trained, message.split([one.numel() for one in trained]), strict=True):
            parameter.grad = piece.reshape(parameter.shape).clone()

    def finish(self, module: nn.Module) -> None:
        """Plain BatchNorm again, in place. Raises CannotDistribute where the processes do not hold the same bits."""
        if self.count == 1:
            return
        replace(module, "bn")
        digests: list[str] = [""] * self.count
        distributed.all_gather_object(digests, _digest(module))
        if len({*digests}) > 1:
            odd = next(rank for rank, digest in enumerate(digests) if digest != digests[0])
            raise CannotDistribute(f"process {odd} holds other weights or statistics than process 0; nothing is kept")


def _digest(module: nn.Module) -> str:
    seen = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        seen.update(name.encode())
        seen.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return seen.hexdigest()

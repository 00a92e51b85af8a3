"""One training over several processes, as torchrun starts them: they compute what one process with all rows would.

    torchrun --nproc-per-node 2 ...      RANK, WORLD_SIZE and where to meet, in the environment

    joined() -> Processes                          alone, where nobody has started others; present(): the same, within
    prepare(module)                                the first process's weights; BatchNorm over the rows of all
    share(rows); loss = sum over own rows / all rows; backward; sum_gradients(module)
    finish(module)                                 plain BatchNorm again, and the same bits everywhere
    of_first(work), sum(values), tell(line)        files are read and written, and lines told, by one

torch's DistributedDataParallel averages the processes' gradients however many rows each has, and its SyncBatchNorm
refuses a CPU; ours weighs by rows and works on gloo. Every process takes part in every step, with any number of rows.
Knows no loop and no data.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed, nn
from torch.distributed.rendezvous import rendezvous

from training.bn.layers import without_statistics
from training.bn.replacing import replace
from training.bn.variants import BatchRenorm, FrozenBatchNorm, GhostBatchNorm, MaskedBatchNorm
from training.errors import UserError

_T = TypeVar("_T")
_TELLING = timedelta(seconds=10)
_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
"""What gloo says, in a RuntimeError like any other, where a process it talks to is no more."""

_OF_ONE_PROCESS = (BatchRenorm, FrozenBatchNorm, GhostBatchNorm, MaskedBatchNorm)


class CannotDistribute(UserError):
    """The network, or what torchrun has said, does not allow it."""


@contextmanager
def joined(backend: str = "gloo") -> Iterator[Processes]:
    """Inside, the processes of this run know each other. Raises CannotDistribute where they do not meet, and where one
    ends before the others."""
    count, rank = _told("WORLD_SIZE", 1), _told("RANK", 0)
    if count == 1:
        yield ALONE
        return
    try:
        store, _, _ = next(rendezvous("env://", rank, count))
        distributed.init_process_group(backend, store=store, rank=rank, world_size=count)
        distributed.barrier()  # nobody goes on, and perhaps ends at once, while others are still connecting
    except (RuntimeError, ValueError) as error:
        raise CannotDistribute(f"the {count} processes of this run do not meet: {error}") from error
    try:
        yield Processes(rank, count, store)
    except RuntimeError as error:
        if any(words in str(error) for words in _GONE):
            raise CannotDistribute(f"process {rank} cannot go on: another of the {count} has ended") from error
        raise
    finally:
        distributed.destroy_process_group()


def present() -> Processes:
    """Those that are joined; without, this one alone."""
    if not distributed.is_initialized():
        return ALONE
    return Processes(distributed.get_rank(), distributed.get_world_size())


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
    _store: Any = field(default=None, repr=False, compare=False)

    @property
    def is_first(self) -> bool:
        """Who writes files."""
        return self.rank == 0

    def share(self, rows: torch.Tensor) -> torch.Tensor:
        """This process's part of a batch; parts differ by one row at most, and have none where there are too few."""
        return rows if self.count == 1 else rows.tensor_split(self.count)[self.rank]

    def of_first(self, work: Callable[[], _T]) -> _T:
        """What `work` gives in the first process, or the UserError that it raises there, in all; the others wait."""
        if self.count == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.is_first:
            try:
                outcome[0] = work()
            except UserError as error:
                outcome[1] = error
        distributed.broadcast_object_list(outcome, 0)
        if outcome[1] is not None:
            raise outcome[1]
        value: _T = outcome[0]
        return value

    def sum(self, values: Sequence[float]) -> list[float]:
        """Over all processes, to the same bits in each."""
        if self.count == 1:
            return [*values]
        message = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(message)
        found: list[float] = message.tolist()
        return found

    def tell(self, line: str, say: Callable[[], object]) -> None:
        """Calls `say` in whichever process comes first to a line to which others may come as well. They wait for it:
        where one has ended, torchrun ends the rest."""
        if self._store is None:
            say()
            return
        try:
            if self._store.add(f"came {line}", 1) > 1:
                self._store.wait([f"said {line}"], _TELLING)
                return
            say()
            self._store.set(f"said {line}", "")
        except RuntimeError:  # whoever keeps the store has ended, or who was to tell it
            say()

    def require_same(self, value: str, what: str) -> None:
        """Raises CannotDistribute where `value`, which stands for `what`, is not that of the first process."""
        if self.count == 1:
            return
        values = [""] * self.count
        distributed.all_gather_object(values, value)
        if len({*values}) > 1:
            odd = next(rank for rank, found in enumerate(values) if found != values[0])
            raise CannotDistribute(f"process {odd} holds other {what} than process 0, expected the same in all")

    def require_same_bits(self, module: nn.Module) -> None:
        """Raises CannotDistribute where something in it has learnt from one process's rows alone."""
        if self.count > 1:
            self.require_same(_digest(module), "weights or statistics")

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
        """Behind `backward`: gradients of the loss over all rows, in every process. In one message. What no process's
        rows have reached keeps none, as with one process: an optimiser lets it be."""
        if self.count == 1:
            return
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        reached = torch.tensor([float(one.grad is not None) for one in trained], device=trained[0].device)
        # One that this process's rows did not reach may have been reached by others'.
        gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in trained]
        message = torch.cat([reached, *(gradient.flatten() for gradient in gradients)])
        distributed.all_reduce(message)
        by, *pieces = message.split([len(trained), *(one.numel() for one in trained)])
        for parameter, processes, piece in zip(trained, by.tolist(), pieces, strict=True):
            parameter.grad = piece.reshape(parameter.shape).clone() if processes else None

    def finish(self, module: nn.Module) -> None:
        """Plain BatchNorm again, in place. Raises CannotDistribute where the processes do not hold the same bits."""
        if self.count == 1:
            return
        replace(module, "bn")
        self.require_same_bits(module)


ALONE = Processes()


def _digest(module: nn.Module) -> str:
    seen = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        seen.update(name.encode())
        seen.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return seen.hexdigest()

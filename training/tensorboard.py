"""Metrics as TensorBoard reads them: for `tensorboard: true`, where its package is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FOLDER = "tensorboard"


@contextmanager
def writing(run: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """What is to be told each line of metrics. Raises ModuleNotFoundError where the package is missing."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(run / FOLDER) as writer:

        def tell(line: Mapping[str, Any]) -> None:
            for name, value in line.items():
                if name not in ("epoch", "steps"):
                    writer.add_scalar(name, value, line["steps"])

        yield tell

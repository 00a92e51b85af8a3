"""The files that commands are given and leave behind: shapes as text, samples as .npz, a model and its reports.

Promises: what a command writes appears together, or nothing does; every mistake is one line that begins with the path
or the option. Knows files and formats; what is in a model or a proof is others' affair.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from training.directories import move, staging, sync
from training.errors import UserError
from training.fold import ModelFileError, write_model
from training.fold.report import FoldReport
from training.reference.op import Array
from training.verify_report import VerifyReport

SKIPPED = "skipped"
"""What stands under `verify` in a report when nobody asked for the proof."""


class CannotUseFile(UserError):
    """A path, an option or a samples file that cannot be used; the line begins with the path or the option."""


def parse_input_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """`NAME=1,3,224,224` as (name, shape). Raises CannotUseFile. A name may hold "=" itself; the last one counts."""
    name, found, sizes = text.rpartition("=")
    shape = parse_sizes(sizes)
    if not found or not name or shape is None:
        raise CannotUseFile(f"--input-shape {text!r}: expected NAME=SIZES, as in x=1,3,224,224")
    return name, shape


def parse_sizes(text: str) -> tuple[int, ...] | None:
    """`1,3,224,224` as a shape, "" as that of a scalar; None for anything else."""
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        return None
    return tuple(int(part) for part in parts)


def read_samples(path: Path) -> dict[str, Array]:
    """The arrays of an .npz, by name. Pickled objects are refused. Raises CannotUseFile."""
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise CannotUseFile(f"{path}: is a single array, expected an .npz with one array for each input")
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        # Not NumPy's words for content it does not know: they recommend allow_pickle=True, which runs what a file says.
        cause = getattr(error, "strerror", None) or "it is no .npz archive of plain arrays, as numpy.savez writes it"
        raise CannotUseFile(f"{path}: cannot be read as samples: {cause}") from error


def check_places(targets: Sequence[Path], *, sources: Sequence[Path] = ()) -> None:
    """Before any work: nobody should wait for a proof to learn that a folder is missing. Raises CannotUseFile.

    `targets[0]` may be one of `sources` (a model folded in place); the reports after it may be nobody else's path.
    """
    for path in targets:
        if path.is_dir():
            raise CannotUseFile(f"{path}: is a folder, expected the name of a file")
        if path.exists() and not path.is_file():  # which a file would replace: /dev/null is one of them
            raise CannotUseFile(f"{path}: is a pipe or a device, expected the name of a file")
        if not path.parent.is_dir():
            raise CannotUseFile(f"{path}: cannot be written: the folder {path.parent} does not exist")
    taken = {_resolved(path) for path in (*targets[:1], *sources)}
    for report in targets[1:]:
        if _resolved(report) in taken:
            raise CannotUseFile(f"{report}: is the model's own path, or another report's; give the report another one")
        taken.add(_resolved(report))


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # Python 3.11's word for a link that leads to itself
        raise CannotUseFile(f"{path}: is a link that leads nowhere, expected the name of a file") from None


@dataclass(frozen=True, slots=True)
class Proof:
    """What the proof found and what it took: wall-clock seconds, and the most memory the process had had by its end."""

    report: VerifyReport
    seconds: float
    peak_bytes: int

    def as_dict(self) -> dict[str, Any]:
        return {**self.report.as_dict(), "seconds": round(self.seconds, 3), "peak_bytes": self.peak_bytes}

    def as_text(self) -> str:
        effort = f"  proved in {self.seconds:.1f} s, with {self.peak_bytes / 2**20:.0f} MiB of memory at most"
        return f"{self.report.as_text()}\n{effort}" if self.report.samples else self.report.as_text()


def proved(work: Callable[[], VerifyReport]) -> Proof:
    """Run the proof `work`, measured. Raises what it raises."""
    started = time.perf_counter()
    report = work()
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, says getrusage(2)
    return Proof(report, time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def report_of(fold: FoldReport, proof: Proof | None) -> dict[str, Any]:
    """The fold report of architecture.md, contract 4; without a proof its `verify` is "skipped"."""
    return {**fold.as_dict(), "verify": proof.as_dict() if proof else SKIPPED}


def write_results(
    target: Path,
    write: Callable[[Path], None],
    reports: Sequence[Path],
    content: Mapping[str, Any],
    page: Callable[[], str],
) -> None:
    """The model and its reports: all are complete beside their places before the first one moves there.

    Args:
        target, write: The model's path, and what writes it to the path it is given (with files beside it, if it must).
        reports: Paths that end in .html get `page()`, all others `content` as JSON.

    Raises CannotUseFile when the disk refuses; a path is then as it was.
    """
    with _told_of(target), ExitStack() as stack:
        folder = stack.enter_context(staging(target.parent))
        try:
            write(folder / target.name)
        except ModelFileError as error:  # which speaks of the place beside it
            raise CannotUseFile(str(error).replace(str(folder / target.name), str(target))) from error
        staged = [(path, stack.enter_context(staging(path.parent)) / path.name) for path in reports]
        for path, place in staged:
            place.write_text(page() if path.suffix.lower() == ".html" else _as_json(content), encoding="utf-8")
            sync(place)
        beside = [path for path in sorted(folder.iterdir()) if path.name != target.name]  # weights of a large model
        for path in beside:
            move(path, target.with_name(path.name))
        move(folder / target.name, target)
        for path, place in staged:
            move(place, path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """One report, whole or not at all. Raises CannotUseFile."""
    write_text(path, _as_json(content))


def write_text(path: Path, text: str) -> None:
    """Likewise."""
    with _told_of(path), staging(path.parent) as folder:
        (folder / path.name).write_text(text, encoding="utf-8")
        sync(folder / path.name)
        move(folder / path.name, path)


def write_to(model: ir.Model) -> Callable[[Path], None]:
    """What writes `model` to a path."""
    return lambda path: write_model(model, path)


@contextmanager
def _told_of(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CannotUseFile(f"{path}: cannot be written: {error.strerror or error}") from error


def _as_json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"

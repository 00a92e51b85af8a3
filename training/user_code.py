"""A user's own code: found by module or by file, called, and whatever it raises told in one line. Knows no torch.

    py:package.module:factory     the current folder can be imported from
    file:path/file.py:factory     the file's folder and the current one can be imported from

Promise: the user's folders may hold a `training` or a `service` of their own, which are then theirs inside their code
and ours outside of it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from training.errors import UserError

OURS = ("training", "service")
_HERE = Path(__file__).resolve().parent
_PRIVATE = "_foldtrain_user"


class SourceRefused(UserError):
    """A SPEC leads to nothing usable. The line begins with the SPEC."""


def made_by(spec: str, where: str, factory: str, folders: Sequence[Path], *, ready: type) -> Any:
    """What `factory` of `where` gives; a value of the type `ready` stands for itself, and so does what cannot be
    called. folders: what can be imported from. Raises SourceRefused."""
    with told_of(spec), _their_names(folders), importable(folders, first=True):
        module = _imported(spec, where)
        if not hasattr(module, factory):
            there = sorted(name for name, value in vars(module).items() if callable(value) and not name.startswith("_"))
            raise SourceRefused(f"{spec}: {where} has no {factory!r}; it has {', '.join(there) or 'nothing to call'}")
        made = getattr(module, factory)
        return made() if callable(made) and not isinstance(made, ready) else made


def _imported(spec: str, where: str) -> ModuleType:
    if spec.startswith("py:"):
        try:
            return importlib.import_module(where)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{where}.".startswith(f"{error.name}."):
                raise  # found, and what it imports is not
            raise SourceRefused(f"{spec}: there is no module {error.name!r} here or among what is installed") from error
    path = Path(where)
    if not path.is_file():
        raise SourceRefused(f"{spec}: there is no file {where}")
    name = f"{_PRIVATE}_{path.stem}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise SourceRefused(f"{spec}: {where} is no Python file")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses and torch look classes up by the name of their module
    found.loader.exec_module(module)
    return module


@contextmanager
def importable(folders: Sequence[Path], *, first: bool) -> Iterator[None]:
    """For the block, before all that can be imported already, or behind it."""
    added, before = [str(folder) for folder in folders], list(sys.path)
    sys.path[:] = [*added, *before] if first else [*before, *added]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


@contextmanager
def _their_names(folders: Sequence[Path]) -> Iterator[None]:
    """Where the user has a package of one of our names, that name is theirs inside the block.

    Ours comes back afterwards, and theirs stays reachable under a private name.
    """
    names = {name for name in OURS if any(_holds_another(folder, name) for folder in folders)}
    ours = _of_names(names)
    for name in ours:
        del sys.modules[name]
    try:
        yield
    finally:
        for name, module in _of_names(names).items():
            sys.modules[f"{_PRIVATE}.{name}"] = sys.modules.pop(name)
            assert module is sys.modules[f"{_PRIVATE}.{name}"]
        sys.modules.update(ours)


def _holds_another(folder: Path, name: str) -> bool:
    """Does `folder` hold a module or package `name` that is not this very one (as the checkout does)?"""
    own = _HERE.parent / name
    return (folder / f"{name}.py").is_file() or ((folder / name).is_dir() and (folder / name).resolve() != own)


def _of_names(names: set[str]) -> dict[str, ModuleType]:
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] in names}


@contextmanager
def told_of(spec: str) -> Iterator[None]:
    """Whatever foreign code raises is one line: what, and in which of its lines."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_ours(frame.filename)]
        last = next((frame for frame in reversed(frames) if not frame.filename.startswith("<")), None)
        place = f" ({Path(last.filename).name}, line {last.lineno})" if last else ""
        raise SourceRefused(f"{spec}: {type(error).__name__}: {first_line(error)}{place}") from error


def first_line(error: BaseException) -> str:
    """Of what an error says; those of some libraries run over pages."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")[:300]


def _is_ours(file: str) -> bool:
    return Path(file).resolve().is_relative_to(_HERE)

"""Where the one model lies that `--model PATH` or `--model-name` asks for: what KServe mounts may be of any shape.

    PATH                                            served
    a file                                          that file
    a folder with one .onnx file                    that file (or the folder model.onnx/ of a model of several files)
    a folder with numbered versions                 that folder, as a model's
    a folder with one such folder in it             the folder inside: a repository of one model
    anything else                                   refused, with what was found

A configuration beside a lone .onnx file is not read: mounts of other tools have a config.json of their own there.
Looks at names only, never into a file.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from service.errors import ModelRejected
from service.repository import MODEL_FILE, TRITON_CONFIG_FILE, versions

log = logging.getLogger(__name__)

_SUFFIX = ".onnx"
_NAMES_SHOWN = 5


def locate(path: Path) -> Path:
    """An ONNX file, or a model's folder. Raises ModelRejected when `path` holds neither, or several."""
    if not path.is_dir():
        return path
    try:
        return _in_folder(path)
    except OSError as error:
        raise ModelRejected(f"{path} cannot be read: {error.strerror}") from error


def _in_folder(folder: Path) -> Path:
    inside = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    files = [entry for entry in inside if entry.suffix == _SUFFIX]
    numbers = [str(found.version) for found in versions(folder)]
    if files and numbers:
        raise ModelRejected(
            f"{folder} holds both versions ({_listed(numbers)}) and {_listed([file.name for file in files])}; "
            f"name the file that is meant"
        )
    if numbers:
        return folder
    if len(files) > 1:
        raise ModelRejected(f"{folder} holds {_listed([file.name for file in files])}; name the one that is meant")
    if files:
        return _file(files[0])
    models = [entry for entry in inside if entry.is_dir() and versions(entry)]
    if len(models) > 1:
        raise ModelRejected(
            f"{folder} is a repository of {len(models)} models ({_listed([model.name for model in models])}); serve "
            f"them all with --model-repository and without --model-name, or name the folder of one"
        )
    if not models:
        found = f"it holds {_listed([entry.name for entry in inside])}" if inside else "it is empty"
        raise ModelRejected(
            f"{folder} has no {_SUFFIX} file, no version (a folder named 1, 2, ...) and no model: {found}"
        )
    return models[0]


def _file(found: Path) -> Path:
    """The file itself, which in a folder model.onnx/ has the same name again."""
    if (found.parent / TRITON_CONFIG_FILE).exists():
        _warn_of_config(found.parent)
    return found / MODEL_FILE if found.is_dir() else found


@cache
def _warn_of_config(_: Path) -> None:
    """Once: whoever polls comes by again and again."""
    log.warning(
        "%s is not read: it belongs one folder above a version, as in NAME/1/%s", TRITON_CONFIG_FILE, MODEL_FILE
    )


def name_of_file(path: Path) -> str:
    """A model name for a file that stands outside a repository: its stem, made legal.

    `model.onnx` says nothing, so then its folder's name counts; and if that is a version number, the folder above.
    """
    if path.name != MODEL_FILE:
        return legal_name(path.stem)
    return name_of_folder(path.absolute().parent)


def name_of_folder(folder: Path) -> str:
    """A model name for a model's folder outside a repository, or the folder above one that says nothing."""
    folder = folder.absolute()
    names = [one.name for one in (folder, *folder.parents[:1]) if not one.name.isdecimal() and one.name != MODEL_FILE]
    return legal_name(*names)


def legal_name(*candidates: str) -> str:
    """The first of them that something is left of as a model's name, or "model"."""
    for candidate in candidates:
        if legal := re.sub(r"[^A-Za-z0-9_.-]+", "-", candidate).strip("-.").lstrip("_"):
            return legal
    return "model"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more

"""A folder of one folder a class, the files in which are its examples. Knows no file's content.

Where the folder holds `train` beside `test` (or `val`, `valid`, `validation`), each with the folders of the classes,
this is the split.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from training.errors import UserError, check_the_path

TRAIN = "train"
HELD_OUT = ("test", "val", "valid", "validation")


@dataclass(frozen=True, slots=True)
class Found:
    """files: those of the training part first. n_test: how many at the end are held out; None: the data do not say."""

    files: list[Path]
    labels: list[str]
    n_test: int | None
    notes: tuple[str, ...]


def find(where: str, suffixes: Collection[str], content: str) -> Found:
    """All files with one of the suffixes, in the order of their names; content: what they are, for people. Raises
    UserError."""
    parts, notes = split_folders(where)
    files: list[Path] = []
    labels: list[str] = []
    others: list[Path] = []
    ends = []
    for part in parts:
        for folder in _class_folders(part, suffixes, content):
            every = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
            mine = [path for path in every if path.suffix.lower() in suffixes]
            others += [path for path in every if path.suffix.lower() not in suffixes]
            if not mine:
                raise UserError(
                    f"{folder}: no {content} in this class's folder, expected files named {_either(suffixes)}; add "
                    f"some, or remove the folder"
                )
            files += mine
            labels += [folder.name] * len(mine)
        ends.append(len(files))
    if others:
        first = others[0].relative_to(where)  # notes go with the model, whose reader has no such folder
        notes = (*notes, f"{len(others)} files are left out, because they are no {content}: {first} is the first")
    return Found(files, labels, ends[1] - ends[0] if len(ends) == 2 else None, notes)


def split_folders(where: str) -> tuple[list[Path], tuple[str, ...]]:
    """The folders of the parts, training first, or the folder itself; then notes. Raises UserError."""
    folder = Path(where)
    if not folder.is_dir():
        raise UserError(
            f"{where}: {'no folder' if folder.exists() else 'not there'}, expected a folder; {check_the_path(where)}"
        )
    held_out = [folder / name for name in HELD_OUT if (folder / name).is_dir()]
    if not (folder / TRAIN).is_dir() or not held_out:
        return [folder], ()
    notes = tuple(f"{unused.name} is not used: {held_out[0].name} is what is held out" for unused in held_out[1:])
    return [folder / TRAIN, held_out[0]], notes


def _class_folders(part: Path, suffixes: Collection[str], content: str) -> list[Path]:
    folders = sorted(path for path in part.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        loose = sum(path.suffix.lower() in suffixes for path in part.iterdir())
        found = f"{loose} {content} but no folders" if loose else "empty"
        raise UserError(f"{part}: {found}, expected one folder a class, with {content}; sort them into some")
    return folders


def _either(suffixes: Collection[str]) -> str:
    return ", ".join(f"*{suffix}" for suffix in sorted(suffixes))

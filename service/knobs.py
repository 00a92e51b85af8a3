"""From the fields of a settings class to flags, variables, help and a table: the reading that no single knob changes.

A knob is a field of a frozen dataclass with the metadata that `about` makes. Knows no knob by its name, and no value
beyond its text; what the class is called and which fields exclude each other is its own affair.
"""

from __future__ import annotations

import argparse
import math
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, NoReturn

from service.flags import Once, Switch, shown

PROGRAM = "foldserve"
VARIABLE_PREFIX = "FOLDSERVE_"

# Kubernetes injects FOLDSERVE_PORT=tcp://10.0.0.1:8000 into every pod of a namespace with a Service named "foldserve"
# (Docker-style service links). It is not meant for us, and without this line it would stop the server from starting.
_SERVICE_LINK = re.compile(r"tcp://\S+:\d+")


class SettingsError(Exception):
    """A knob has a value that cannot be used. `str(error)` is one line that names knob, value and what is legal."""


def about(
    help_text: str,
    *,
    metavar: str = "N",
    unit: str = "",
    minimum: int | None = None,
    maximum: int | None = None,
    choices: tuple[str, ...] = (),
    pattern: str = "",
    legal: str = "",
    aliases: tuple[str, ...] = (),
) -> Mapping[str, Any]:
    """The metadata of a knob; everything that is derived from a settings class reads it.

    pattern, legal: what a text, or each of several, must look like, for the program and in words. aliases: what
    KServe's runtimes and tritonserver call the flag, so that arguments written for them work as they stand.
    """
    return {
        "help": help_text,
        "metavar": metavar,
        "unit": unit,
        "minimum": minimum,
        "maximum": maximum,
        "choices": choices,
        "pattern": pattern,
        "legal": legal,
        "aliases": aliases,
    }


def check(knob: Field[Any], value: Any) -> None:
    """Raises ValueError, with what is legal, when a knob may not have this value."""
    minimum, maximum, choices, pattern = (knob.metadata[key] for key in ("minimum", "maximum", "choices", "pattern"))
    if minimum is not None and value < minimum:
        raise ValueError(f"{value} is below the minimum of {minimum}")
    if maximum is not None and value > maximum:
        raise ValueError(f"{value} is above the maximum of {maximum}")
    for text in value if isinstance(value, tuple) else (value,):
        if pattern and text is not None and not re.fullmatch(pattern, text):
            raise ValueError(f"{text!r} is not {knob.metadata['legal']}")
    if choices and value not in choices:
        raise ValueError(f"{value!r} is not one of {', '.join(choices)}")


def table(owner: type) -> str:
    """Every knob as a Markdown table, for the README."""
    rows = ["| Flag | Variable | Default | Meaning |", "|---|---|---|---|"]
    for knob in fields(owner):
        default = f"`{shown(knob.default)}`" if knob.default not in _UNSET else ""
        rows.append(f"| `{_shown_flag(knob)}` | `{variable(knob.name)}` | {default} | {_help(knob)} |")
    return "\n".join(rows) + "\n"


_UNSET: tuple[object, ...] = (None, "", ())
"""Defaults that nobody has to be told of."""


# --- from text to value -------------------------------------------------------------------------------------------


def _read_bool(text: str) -> bool:
    word = text.strip().lower()
    if word in {"1", "true", "yes", "on"}:
        return True
    if word in {"0", "false", "no", "off"}:
        return False
    raise ValueError(f"{text!r} is neither true nor false (1, true, yes, on; 0, false, no, off)")


def _read_int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number") from None


def _read_seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not a number")
    return value


def _read_names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise ValueError(f"{text!r} names nothing; give one or more names, comma separated")
    return names


def _read_text(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return text.strip()


def _read_path(text: str) -> Path:
    if not text or "\0" in text:
        raise ValueError(f"{text!r} is not a path")
    return Path(text).expanduser()


_READERS: dict[object, Callable[[str], Any]] = {
    bool: _read_bool,
    int: _read_int,
    float: _read_seconds,
    str: _read_text,
    str | None: _read_text,
    Path: _read_path,
    Path | None: _read_path,
    tuple[str, ...]: _read_names,
}


def _reader(owner: type, knob: Field[Any]) -> Callable[[str], Any]:
    to_value = _READERS[typing.get_type_hints(owner)[knob.name]]

    def read(text: str) -> Any:
        value = to_value(text)
        check(knob, value)
        return value

    return read


def read_variables(owner: type, environ: Mapping[str, str]) -> dict[str, Any]:
    """The values that variables give, by knob. Raises SettingsError."""
    values = {}
    for knob in fields(owner):
        name = variable(knob.name)
        text = environ.get(name, "")
        # An empty variable is how shells and compose files say "not set".
        if not text or (knob.name == "port" and _SERVICE_LINK.fullmatch(text)):
            continue
        try:
            values[knob.name] = _reader(owner, knob)(text)
        except ValueError as error:
            raise SettingsError(f"{name}: {error}") from error
    return values


# --- flags --------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """argparse, but a bad command line is one line and no usage block."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message}; see {PROGRAM} --help")


def parser(
    owner: type, version: str, description: str, *, given_once: frozenset[str] = frozenset()
) -> argparse.ArgumentParser:
    """A flag for each knob; what it reads is None where a flag was not given. given_once: knobs of which a second flag
    is a mistake. Its `parse_args` raises SettingsError."""
    # Width: argparse follows the terminal, and takes 80 when there is none.
    parser = _Parser(
        prog=PROGRAM,
        description=description,
        epilog="Each option can also be set by the variable in square brackets; a flag beats a variable.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {version}")
    for knob in fields(owner):
        # `%` is argparse's own format character.
        text = f"{_help(knob)} (default: {shown(knob.default)}) [{variable(knob.name)}]".replace("%", "%%")
        if knob.default in _UNSET:
            text = f"{_help(knob)} [{variable(knob.name)}]".replace("%", "%%")
        action = Once if knob.name in given_once else "store"
        read = _argument_type(_reader(owner, knob))
        if isinstance(knob.default, bool):
            names = (flag(knob.name), f"--no-{flag(knob.name)[2:]}")
            parser.add_argument(*names, action=Switch, nargs="?", metavar="BOOL", type=read, help=text)
        else:
            parser.add_argument(flag(knob.name), action=action, metavar=_metavar(knob), type=read, help=text)
        for alias in knob.metadata["aliases"]:
            parser.add_argument(alias, action=action, dest=knob.name, type=read, help=argparse.SUPPRESS)
    return parser


def _argument_type(read: Callable[[str], Any]) -> Callable[[str], Any]:
    def argument(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return argument


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    return VARIABLE_PREFIX + name.upper()


def _metavar(knob: Field[Any]) -> str:
    choices: tuple[str, ...] = knob.metadata["choices"]
    return "{" + ",".join(choices) + "}" if choices else str(knob.metadata["metavar"])


def _shown_flag(knob: Field[Any]) -> str:
    if isinstance(knob.default, bool):
        return f"--[no-]{flag(knob.name)[2:]}"
    return f"{flag(knob.name)} {_metavar(knob)}"


def _help(knob: Field[Any]) -> str:
    text: str = knob.metadata["help"]
    unit: str = knob.metadata["unit"]
    return f"{text}, in {unit}" if unit else text

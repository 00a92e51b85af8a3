"""Every operator's knob in one frozen object: name, type, default, range, unit and help, stated once.

Command-line flags, FOLDSERVE_* variables, `--help` and the README's table all derive from the fields of `Settings`;
to add a knob, add a field. A flag beats a variable, a variable beats the default.
This file knows what a legal value is, not whether a path exists or a provider is installed.
"""

from __future__ import annotations

import argparse
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from service import __version__
from service.flags import Once, Switch, shown

PROGRAM = "foldserve"
VARIABLE_PREFIX = "FOLDSERVE_"
_WHAT_TO_SERVE = frozenset({"model", "model_repository"})

# Kubernetes injects FOLDSERVE_PORT=tcp://10.0.0.1:8000 into every pod of a namespace with a Service named "foldserve"
# (Docker-style service links). It is not meant for us, and without this line it would stop the server from starting.
_SERVICE_LINK = re.compile(r"tcp://\S+:\d+")


class SettingsError(Exception):
    """A knob has a value that cannot be used. `str(error)` is one line that names knob, value and what is legal."""


def _about(
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
    """The metadata of a knob; everything that is derived from `Settings` reads it.

    pattern, legal: what a text must look like, for the program and in words. aliases: what KServe's runtimes and
    tritonserver call the flag, so that arguments written for them work as they stand.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an operator may choose. Raises SettingsError when a value is out of its range."""

    model_repository: Path = field(
        default=Path("models"),
        metadata=_about(
            "folder of models to serve: NAME/VERSION/model.onnx, optionally with NAME/config.json or Triton's "
            "NAME/config.pbtxt",
            metavar="DIR",
            aliases=("--model-store",),
        ),
    )
    model: Path | None = field(
        default=None,
        metadata=_about(
            "serve one model instead of a repository: an ONNX file, or a folder that holds one, or numbered versions",
            metavar="PATH",
            aliases=("--model_dir",),
        ),
    )
    model_name: str | None = field(
        default=None,
        metadata=_about(
            "name under which the one model is served; absent: derived from file or folder. Without --model, the "
            "repository's folder may be anything that --model takes",
            metavar="NAME",
            pattern=r"[A-Za-z0-9][A-Za-z0-9_.-]*",
            legal="a model name: letters, digits, '_', '-' and '.', not starting with '.', '-' or '_'",
            aliases=("--model_name",),
        ),
    )
    host: str = field(
        default="127.0.0.1",
        metadata=_about("address to listen on; 0.0.0.0 is every IPv4 interface", metavar="HOST"),
    )
    port: int = field(
        default=8000,
        metadata=_about(
            "TCP port to listen on; 0 lets the system choose one",
            minimum=0,
            maximum=65535,
            aliases=("--http-port", "--http_port"),
        ),
    )
    strict_readiness: bool = field(
        default=True,
        metadata=_about("ready means that every model is READY; without it, that one is READY and none is LOADING"),
    )
    providers: tuple[str, ...] = field(
        default=("CPUExecutionProvider",),
        metadata=_about(
            "ONNX Runtime execution providers in order of preference, comma separated; one that is missing makes the "
            "models UNAVAILABLE, never a silent fall-back",
            metavar="A,B",
        ),
    )
    intra_op_threads: int = field(
        default=0,
        metadata=_about(
            "threads that one model run may use; 0 takes the cores that affinity and cgroup quota allow, or one for a "
            "model whose short runs more do not make shorter",
            minimum=0,
            maximum=1024,
        ),
    )
    max_body_bytes: int = field(
        default=64 * 1024 * 1024,
        metadata=_about("largest request body; a longer one is answered 413", unit="bytes", minimum=1),
    )
    root_path: str = field(
        default="",
        metadata=_about(
            "path under which a proxy publishes this server, such as /models/eu; requests are answered with and "
            "without it, so the proxy may strip it or not",
            metavar="PATH",
            pattern=r"|(?!/v[12](/|$))(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+",
            legal="a path such as /base: begin with a slash, end without, not /v1 or /v2",
        ),
    )
    system_shared_memory: bool = field(
        default=False,
        metadata=_about(
            "take tensors through system shared memory; whoever can send requests can then read and write every object "
            "in /dev/shm that this server's user may"
        ),
    )
    drain_limit_s: int = field(
        # Kubernetes kills 30 s after SIGTERM by default; stop by ourselves a little earlier, with a word in the log.
        default=25,
        metadata=_about(
            "after SIGTERM, how long requests in flight may take to finish", unit="seconds", minimum=0, maximum=86400
        ),
    )
    log_level: str = field(
        default="info",
        metadata=_about("least severe event to log", choices=("debug", "info", "warning", "error")),
    )
    server_timing: bool = field(
        default=False,
        metadata=_about(
            "tell in a Server-Timing header of each inference answer how long it took in each stage; strangers can "
            "read from it how busy the server is"
        ),
    )

    def __post_init__(self) -> None:
        for knob in fields(self):
            try:
                _check(knob, getattr(self, knob.name))
            except ValueError as error:
                raise SettingsError(f"{knob.name}: {error}") from error

    @classmethod
    def from_command_line(cls, argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
        """The settings that flags and variables ask for.

        Raises SettingsError with one clear line, and SystemExit(0) after printing for --help and --version.
        """
        from_variables = _read_variables(environ)
        from_flags = {name: value for name, value in vars(_parser().parse_args(argv)).items() if value is not None}
        for source, spell in ((from_flags, _flag), (from_variables, _variable)):
            if source.keys() >= _WHAT_TO_SERVE:
                both = " and ".join(spell(name) for name in sorted(_WHAT_TO_SERVE))
                raise SettingsError(f"{both} exclude each other: give one file or one folder")
        # Within one source both is a contradiction; between sources the flag is the later word (an image may set a
        # variable that its user overrides).
        if from_flags.keys() & _WHAT_TO_SERVE:
            from_variables = {name: value for name, value in from_variables.items() if name not in _WHAT_TO_SERVE}
        return cls(**(from_variables | from_flags))


def readme_table() -> str:
    """Every knob as a Markdown table, for the README."""
    rows = ["| Flag | Variable | Default | Meaning |", "|---|---|---|---|"]
    for knob in fields(Settings):
        default = f"`{shown(knob.default)}`" if knob.default not in (None, "") else ""
        rows.append(f"| `{_shown_flag(knob)}` | `{_variable(knob.name)}` | {default} | {_help(knob)} |")
    return "\n".join(rows) + "\n"


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
    str: _read_text,
    str | None: _read_text,
    Path: _read_path,
    Path | None: _read_path,
    tuple[str, ...]: _read_names,
}


def _types() -> dict[str, object]:
    return typing.get_type_hints(Settings)


def _read(knob: Field[Any], text: str) -> Any:
    value = _READERS[_types()[knob.name]](text)
    _check(knob, value)
    return value


def _check(knob: Field[Any], value: Any) -> None:
    minimum, maximum, choices, pattern = (knob.metadata[key] for key in ("minimum", "maximum", "choices", "pattern"))
    if minimum is not None and value < minimum:
        raise ValueError(f"{value} is below the minimum of {minimum}")
    if maximum is not None and value > maximum:
        raise ValueError(f"{value} is above the maximum of {maximum}")
    if pattern and value is not None and not re.fullmatch(pattern, value):
        raise ValueError(f"{value!r} is not {knob.metadata['legal']}")
    if choices and value not in choices:
        raise ValueError(f"{value!r} is not one of {', '.join(choices)}")


def _read_variables(environ: Mapping[str, str]) -> dict[str, Any]:
    values = {}
    for knob in fields(Settings):
        variable = _variable(knob.name)
        text = environ.get(variable, "")
        # An empty variable is how shells and compose files say "not set".
        if not text or (knob.name == "port" and _SERVICE_LINK.fullmatch(text)):
            continue
        try:
            values[knob.name] = _read(knob, text)
        except ValueError as error:
            raise SettingsError(f"{variable}: {error}") from error
    return values


# --- flags --------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """argparse, but a bad command line is one line and no usage block."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message}; see {PROGRAM} --help")


def _parser() -> argparse.ArgumentParser:
    # Width: argparse follows the terminal, and takes 80 when there is none.
    parser = _Parser(
        prog=PROGRAM,
        description="Serve ONNX models over the Open Inference Protocol v2 (REST, JSON and binary tensors).",
        epilog="Each option can also be set by the variable in square brackets; a flag beats a variable.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    for knob in fields(Settings):
        # `%` is argparse's own format character.
        text = f"{_help(knob)} (default: {shown(knob.default)}) [{_variable(knob.name)}]".replace("%", "%%")
        if knob.default in (None, ""):
            text = f"{_help(knob)} [{_variable(knob.name)}]".replace("%", "%%")
        action = Once if knob.name in _WHAT_TO_SERVE else "store"
        if isinstance(knob.default, bool):
            names = (_flag(knob.name), f"--no-{_flag(knob.name)[2:]}")
            parser.add_argument(*names, action=Switch, nargs="?", metavar="BOOL", type=_argument_type(knob), help=text)
        else:
            parser.add_argument(
                _flag(knob.name), action=action, metavar=_metavar(knob), type=_argument_type(knob), help=text
            )
        for alias in knob.metadata["aliases"]:
            parser.add_argument(alias, action=action, dest=knob.name, type=_argument_type(knob), help=argparse.SUPPRESS)
    return parser


def _argument_type(knob: Field[Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return _read(knob, text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _variable(name: str) -> str:
    return VARIABLE_PREFIX + name.upper()


def _metavar(knob: Field[Any]) -> str:
    choices: tuple[str, ...] = knob.metadata["choices"]
    return "{" + ",".join(choices) + "}" if choices else str(knob.metadata["metavar"])


def _shown_flag(knob: Field[Any]) -> str:
    if isinstance(knob.default, bool):
        return f"--[no-]{_flag(knob.name)[2:]}"
    return f"{_flag(knob.name)} {_metavar(knob)}"


def _help(knob: Field[Any]) -> str:
    text: str = knob.metadata["help"]
    unit: str = knob.metadata["unit"]
    return f"{text}, in {unit}" if unit else text

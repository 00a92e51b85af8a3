"""The command `foldtrain`: the command line and exit codes; every command's work is imported when it runs.

    foldtrain build RECIPE     from data to a published version           (extra: training)
    foldtrain fold IN -o OUT   a folded, verified copy of an ONNX file    (extra: fold; no torch)

Exit codes: 0 done; 1 the work was done, but what came out failed its checks and nothing was written; 2 the input cannot
be used, one line says why; 130 interrupted. Answers go to stdout, progress and errors to stderr.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import NoReturn, TypeAlias

from training.recipe import RECIPES, describe_settings, find_recipe

DONE, CHECKS_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 128 + signal.SIGINT

ERRORS = (
    ("training.verify_report", "VerificationFailed", CHECKS_FAILED),
    ("training.pipeline", "ChecksFailed", CHECKS_FAILED),
    ("training.errors", "UserError", BAD_INPUT),
    ("training.fold.errors", "FoldError", BAD_INPUT),
    ("pydantic", "ValidationError", BAD_INPUT),
    ("builtins", "MemoryError", BAD_INPUT),  # NumPy's text says for what; a smaller --input-shape is the usual cure
)
"""What is told in one line instead of a traceback: module, class, exit code; the first row that fits decides.

By name, so that this table imports nothing: an error whose module was never imported was not raised.
"""

EXTRAS: Mapping[str, str] = {
    "torch": "training",
    "onnxscript": "training",
    "sklearn": "training",
    "tqdm": "training",
    "onnx": "fold",
    "onnx_ir": "fold",
    "ml_dtypes": "fold",
}
"""Import name of an optional dependency -> the extra of pyproject.toml that installs it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], None] = options.command
    try:
        command(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        told = f"this needs {package}, which is not installed: pip install 'foldserve[{EXTRAS[package]}]'"
        return _say(told, BAD_INPUT)
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        return _say(str(error), code)
    return DONE


def build(options: argparse.Namespace) -> None:
    recipe = find_recipe(options.recipe, options.set)
    from training import pipeline

    result = pipeline.build(recipe, options.repository, replace=options.replace, announce=_announce)
    sys.stdout.write(f"{result.as_text()}\n")


def fold(options: argparse.Namespace) -> None:
    from training.fold_file import fold_file, parse_input_shape

    result = fold_file(
        options.input,
        options.output,
        report=options.report,
        input_shapes=dict(parse_input_shape(text) for text in options.input_shape),
        samples=options.samples,
    )
    sys.stdout.write(f"{result.as_text()}\n")


def _exit_code(error: Exception) -> int | None:
    """The exit code of an error that is the user's to mend; None for a defect of ours, which keeps its traceback."""
    for module, name, code in ERRORS:
        if module in sys.modules and isinstance(error, getattr(sys.modules[module], name)):
            return code
    return None


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is answered in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"foldtrain: error: {message}; see {self.prog} --help\n")


Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"  # argparse has no public name for it


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="foldtrain", description="Train BatchNorm networks, fold them, prove it, publish them.")
    parser.add_argument("--version", action="version", version=f"foldserve {metadata.version('foldserve')}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_build(commands)
    _add_fold(commands)
    return parser


def _add_build(commands: Commands) -> None:
    new = commands.add_parser(
        "build",
        help="from data to a published version",
        description="Train, export, fold, verify and publish. Nothing is published unless every check passes.",
        epilog=_keys(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    new.add_argument("recipe", metavar="RECIPE", help=f"one of: {', '.join(RECIPES)}")
    new.add_argument("--repository", type=Path, default=Path("models"), metavar="DIR", help="default: %(default)s")
    new.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a setting, as in optimiser.learning_rate=0.05",
    )
    new.add_argument("--replace", type=_version, metavar="VERSION", help="exchange this version instead of adding one")
    new.set_defaults(command=build)


def _add_fold(commands: Commands) -> None:
    new = commands.add_parser(
        "fold",
        help="a folded, verified copy of an ONNX file",
        description="Fold every BatchNormalization that can be folded exactly, prove that nothing changed, then write. "
        "What cannot be folded stays, with its reason in the report; that is success, too.",
    )
    new.add_argument("input", type=Path, metavar="IN.onnx")
    new.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.onnx")
    new.add_argument("--report", type=_json_file, metavar="FILE.json", help="also write the fold report here")
    new.add_argument(
        "--input-shape",
        action="append",
        default=[],
        metavar="NAME=1,3,8,8",
        help="for an input with free sizes: one that the model accepts (may be given several times)",
    )
    new.add_argument("--samples", type=Path, metavar="FILE.npz", help="real inputs for the proof, rows along axis 0")
    new.set_defaults(command=fold)


def _keys() -> str:
    rows = describe_settings()
    width = max(len(key) for key, _, _ in rows)
    return "\n".join(
        ["keys for --set (as in the recipe 'digits'):"]
        + [f"  {key:<{width}}  {value}{f'  ({text})' if text else ''}" for key, value, text in rows]
    )


def _version(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a version: a positive integer")
    return int(text)


def _json_file(text: str) -> Path:
    if not text.lower().endswith(".json"):
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .json, the only form of the report so far")
    return Path(text)


def _announce(step: str) -> None:
    sys.stderr.write(f"{step}\n")


def _say(message: str, exit_code: int) -> int:
    sys.stderr.write(f"foldtrain: error: {' '.join(message.split())}\n")
    return exit_code


if __name__ == "__main__":
    sys.exit(main())

"""The command `foldtrain`: the command line and exit codes; every command's work is imported when it runs.

    foldtrain build SPEC           from data to a published version                    (extra: training)
    foldtrain train SPEC --out DIR a run in a folder, which can be resumed at any step (extra: training)
    foldtrain resume DIR           on with it, to the same bits                        (extra: training)
    foldtrain crossq ENVIRONMENT   a policy, learned by CrossQ, as a published version (extra: rl)
    foldtrain export SPEC -o OUT   a torch network as a folded, verified ONNX file     (extra: training)
    foldtrain doctor CHECKPOINT    are its BatchNorm layers healthy? or: doctor RUN    (extra: training)
    foldtrain recalibrate RUN      its statistics on data of a new domain, published   (extra: training)
    foldtrain fold IN -o OUT       a folded, verified copy of an ONNX file             (extra: fold; no torch)
    foldtrain verify A B           do two ONNX files agree, and by how much?           (extra: fold; no torch)
    foldtrain publish FILE         an ONNX file into the repository, golden samples    (extra: fold; no torch)

Exit codes: 0 done; 1 the work was done, but what came out failed its checks and nothing was written (of doctor: a
finding is red, and the reports are written); 2 the input cannot be used, one line says why; 130 interrupted. Answers go
to stdout, progress and errors to stderr. Of several processes that torchrun has started one tells them.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol, TypeAlias

from training.datasets import SOURCES
from training.presets import PRESETS
from training.recipe import RECIPES, REMEDIES, describe_settings

if TYPE_CHECKING:
    from training.recipe_sources import Asked

DONE, CHECKS_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 128 + signal.SIGINT

ERRORS = (
    ("training.verify_report", "VerificationFailed", CHECKS_FAILED),
    ("training.pipeline", "ChecksFailed", CHECKS_FAILED),
    ("training.health_check", "Unhealthy", CHECKS_FAILED),
    ("training.half_precision", "HalfDiffers", CHECKS_FAILED),
    ("training.export_file", "AnswersDiffer", CHECKS_FAILED),
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
    "safetensors": "training",
    "onnxscript": "training",
    "sklearn": "training",
    "tqdm": "training",
    "ignite": "training",
    "yaml": "training",
    "PIL": "training",
    "tensorboard": "tensorboard",
    "onnx": "fold",
    "onnx_ir": "fold",
    "ml_dtypes": "fold",
    "gymnasium": "rl",
    "sb3_contrib": "rl",
}
"""Import name of an optional dependency -> the extra of pyproject.toml that installs it."""

PROFILES = ("generic", "ort-cpu", "ort-cuda")
"""Of `training.fold.Profile`, which is not imported for a list of names. A test compares them."""

INPUT_TYPES = ("float32", "float64", "int64", "int32", "uint8", "bool")
"""Of `training.export_file`, likewise."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    return _answer(command if _is_alone() else _among_others, options, _say)


def _is_alone() -> bool:
    return os.environ.get("WORLD_SIZE", "1") == "1"


def _among_others(options: argparse.Namespace) -> int:
    """As one of several processes that torchrun has started. An error to which all come is told once."""
    from training.distributed import joined

    command = options.command if options.command in (train, resume) else _refuse_company
    with joined() as processes:

        def say(message: str, exit_code: int) -> int:
            processes.tell(message, lambda: _say(message, exit_code))
            return exit_code

        return _answer(command, options, say)


def _refuse_company(_: argparse.Namespace) -> int:
    from training.distributed import CannotDistribute

    raise CannotDistribute(
        "only train and resume make use of several processes, as torchrun starts them; run this in one. A run that "
        "several have trained is published by one, too: foldtrain recalibrate RUN --data SOURCE"
    )


def _answer(
    command: Callable[[argparse.Namespace], int], options: argparse.Namespace, say: Callable[[str, int], int]
) -> int:
    try:
        return command(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        told = f"this needs {package}, which is not installed: pip install 'foldserve[{EXTRAS[package]}]'"
        return say(told, BAD_INPUT)
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        return say(str(error), code)


def build(options: argparse.Namespace) -> int:
    asked = _asked(options)
    if asked.name is not None:  # before torch is imported and data are read, which takes seconds or more
        from training.publish import check_destination

        check_destination(options.repository, asked.name, options.replace)
    if not asked.base:
        _announce(f"read     {options.spec}")
    from training import pipeline

    result = pipeline.build_asked(asked, options.repository, replace=options.replace, announce=_announce)
    return _tell(result)


def train(options: argparse.Namespace) -> int:
    asked = _asked(options)
    _print(f"train: {options.spec} into {options.out}")  # before torch is imported, which takes seconds
    from training.train_run import start_asked

    return _tell(start_asked(asked, options.out, every_s=options.checkpoint_every_s, announce=_print))


def _asked(options: argparse.Namespace) -> Asked:
    from training.recipe_sources import ask

    return ask(
        options.spec,
        preset=options.preset,
        overrides=[*([f"remedy={options.remedy}"] if options.remedy else []), *options.set],
        environment=os.environ,
        finds_rate=options.find_lr,
    )


def resume(options: argparse.Namespace) -> int:
    from training.train_run import resume as go_on

    return _tell(go_on(options.folder, every_s=options.checkpoint_every_s))


def export(options: argparse.Namespace) -> int:
    from training.export_file import Wishes, export_file

    wishes = Wishes(
        weights=options.weights,
        input_shapes=dict(options.input_shape),
        input_dtypes=dict(options.input_dtype),
        samples=options.samples,
        dynamic_batch=not options.static_batch,
        opset=options.opset,
        dtype=options.dtype,
        normalize=options.normalize,
        mean=options.mean,
        std=options.std,
        fold=not options.no_fold,
        profile=options.profile,
        widen=options.widen,
        verify=not options.no_verify,
        torchvision_shim=options.torchvision_shim,
    )
    return _tell(export_file(options.spec, options.output, wishes, reports=options.report))


def crossq(options: argparse.Namespace) -> int:
    from training.reinforcement import CrossQ, build_policy

    wishes = CrossQ(options.environment, options.steps, options.seed, options.widths, options.minimum_return)
    name = options.name or options.environment.rpartition("/")[2].lower()
    return _tell(build_policy(wishes, name, options.repository, replace=options.replace, announce=_announce))


def doctor(options: argparse.Namespace) -> int:
    from training.doctor import doctor as examine

    result = examine(
        options.checkpoint,
        options.model,
        data=options.data,
        facts=options.facts,
        ranks=options.rank,
        in_order=options.in_order,
        json_file=options.json,
        html_file=options.html,
        torchvision_shim=options.torchvision_shim,
    )
    _tell(result)
    return DONE if result.diagnosis.healthy else CHECKS_FAILED


def recalibrate(options: argparse.Namespace) -> int:
    from training.recalibrate import recalibrate as measure_again

    result = measure_again(
        options.folder, options.data, options.repository, mode=options.mode, replace=options.replace, announce=_announce
    )
    return _tell(result)


def fold(options: argparse.Namespace) -> int:
    from training.command_files import parse_input_shape
    from training.fold_file import fold_file

    result = fold_file(
        options.input,
        options.output,
        profile=options.profile,
        widen=options.widen,
        reports=options.report,
        input_shapes=dict(parse_input_shape(text) for text in options.input_shape),
        samples=options.samples,
        verified=not options.no_verify,
    )
    return _tell(result)


def verify(options: argparse.Namespace) -> int:
    from training.command_files import parse_input_shape
    from training.verify_files import verify_files

    result = verify_files(
        options.first,
        options.second,
        input_shapes=dict(parse_input_shape(text) for text in options.input_shape),
        samples=options.samples,
        report=options.report,
    )
    _tell(result)
    return DONE if result.agree else CHECKS_FAILED


def publish(options: argparse.Namespace) -> int:
    from training.publish_file import publish_file

    result = publish_file(
        options.input,
        name=options.name,
        repository=options.repository,
        labels=options.labels,
        samples=options.samples,
        replace=options.replace,
        max_batch_size=options.max_batch_size,
    )
    return _tell(result)


class _Result(Protocol):
    def as_text(self) -> str: ...


def _tell(result: _Result) -> int:
    _print(result.as_text())
    return DONE


def _print(text: str) -> None:
    if not _is_alone() and os.environ.get("RANK") != "0":
        return
    sys.stdout.write(f"{_harmless(text)}\n")
    sys.stdout.flush()


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
    _add_train(commands)
    _add_resume(commands)
    _add_crossq(commands)
    _add_export(commands)
    _add_doctor(commands)
    _add_recalibrate(commands)
    _add_fold(commands)
    _add_verify(commands)
    _add_publish(commands)
    return parser


def _add_build(commands: Commands) -> None:
    new = commands.add_parser(
        "build",
        help="from data to a published version",
        description="Train, export, fold, verify and publish. Nothing is published unless every check passes.",
        epilog=_keys(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_recipe(new)
    new.add_argument("--repository", type=Path, default=Path("models"), metavar="DIR", help="default: %(default)s")
    new.add_argument("--replace", type=_version, metavar="VERSION", help="exchange this version instead of adding one")
    new.set_defaults(command=build)


def _add_recipe(new: _Parser) -> None:
    new.add_argument(
        "spec",
        metavar="SPEC",
        help=f"a recipe ({', '.join(RECIPES)}), a file.yaml with its keys, or data ({', '.join(SOURCES)})",
    )
    new.add_argument("--preset", metavar="NAME", help=f"network and how it is trained: {', '.join(PRESETS)}")
    new.add_argument(
        "--find-lr",
        action="store_true",
        help="find the learning rate by a trial on a copy, as does --set optimiser.learning_rate=auto",
    )
    new.add_argument("--remedy", metavar="KIND", help=f"of small batches: auto, {', '.join(REMEDIES)}")
    new.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a setting, as in optimiser.learning_rate=0.05; FOLDTRAIN_OPTIMISER__LEARNING_RATE in the "
        "environment does so, too",
    )


def _add_train(commands: Commands) -> None:
    new = commands.add_parser(
        "train",
        help="a run in a folder, which can be resumed",
        description="Train into a folder: settings, metrics, checkpoints, and at the end weights with population "
        "statistics. Ctrl-C finishes the step and leaves all of that; a second one ends at once.",
        epilog=_keys(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_recipe(new)
    new.add_argument("--out", type=Path, required=True, metavar="DIR", help="empty, or not there yet")
    _add_checkpoint_every(new)
    new.set_defaults(command=train)


def _add_resume(commands: Commands) -> None:
    new = commands.add_parser(
        "resume",
        help="go on with a run",
        description="Go on from a run's last checkpoint. On the same machine the weights, statistics and metrics are "
        "those of a run that never stopped, bit for bit.",
    )
    new.add_argument("folder", type=Path, metavar="DIR", help="as given to train --out")
    _add_checkpoint_every(new)
    new.set_defaults(command=resume)


def _add_checkpoint_every(new: _Parser) -> None:
    new.add_argument(
        "--checkpoint-every-s",
        type=_seconds,
        default=30.0,
        metavar="SECONDS",
        help="how often one is kept; 0: after each step (default: %(default)g)",
    )


def _add_export(commands: Commands) -> None:
    new = commands.add_parser(
        "export",
        help="a torch network as a folded, verified ONNX file",
        description="Export a network, fold it, prove that nothing changed, compare ONNX Runtime's answer with torch's "
        "own, then write. A SPEC is py:package.module:factory, file:path/model.py:factory, timm:NAME or "
        "torchvision:NAME; a factory returns an nn.Module in eval mode, or (module, example_inputs).",
    )
    new.add_argument("spec", metavar="SPEC")
    new.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.onnx")
    new.add_argument(
        "--weights", type=Path, metavar="FILE", help=".safetensors, or a .pt that holds nothing but tensors"
    )
    new.add_argument(
        "--input-shape",
        action="append",
        type=_named_shape,
        default=[],
        metavar="[NAME=]1,3,224,224",
        help="of an example; without NAME for the only input (may be given several times)",
    )
    new.add_argument(
        "--input-dtype",
        action="append",
        type=_named_type,
        default=[],
        metavar="[NAME=]TYPE",
        help=f"of such an example: {', '.join(INPUT_TYPES)}; default: float32",
    )
    batch = new.add_mutually_exclusive_group()
    batch.add_argument("--dynamic-batch", action="store_true", help="axis 0 of each input is free (the default)")
    batch.add_argument("--static-batch", action="store_true", help="axis 0 is fixed, too, as in the example")
    new.add_argument("--opset", type=_positive, metavar="N", help="of ONNX's operators; default: torch's choice")
    new.add_argument("--dtype", choices=("fp32", "fp16", "bf16"), default="fp32", help="cast to it after folding")
    new.add_argument("--normalize", action="store_true", help="put what the model's weights expect into the graph")
    new.add_argument("--mean", type=_numbers, metavar="0.485,...", help="of --normalize, instead of the model's own")
    new.add_argument("--std", type=_numbers, metavar="0.229,...", help="likewise")
    new.add_argument("--no-fold", action="store_true", help="keep every BatchNormalization")
    _add_shim(new)
    _add_folding(new)
    new.set_defaults(command=export)


def _add_crossq(commands: Commands) -> None:
    new = commands.add_parser(
        "crossq",
        help="a policy for a Gymnasium environment, learned by CrossQ",
        description="Let sb3-contrib's CrossQ learn, fold the batch renormalisation of its actor into the weights "
        "behind it, verify and publish. Nothing is published unless every check passes.",
    )
    new.add_argument("environment", metavar="ENVIRONMENT", help="of Gymnasium, e.g. Pendulum-v1")
    new.add_argument("--steps", type=_positive, default=5000, help="in the environment (default: %(default)s)")
    new.add_argument("--seed", type=_count, default=0, help="default: %(default)s")
    new.add_argument("--widths", type=_widths, default=(64, 64), metavar="N,N", help="of the actor (default: 64,64)")
    new.add_argument("--minimum-return", type=float, metavar="R", help="publish nothing below it")
    new.add_argument("--name", help="of the model (default: the environment's, in small letters)")
    new.add_argument("--repository", type=Path, default=Path("models"), metavar="DIR", help="default: %(default)s")
    new.add_argument("--replace", type=_version, metavar="VERSION", help="exchange this version instead of adding one")
    new.set_defaults(command=crossq)


def _add_doctor(commands: Commands) -> None:
    new = commands.add_parser(
        "doctor",
        help="are the BatchNorm layers of a checkpoint, or of a run, healthy?",
        description="Examine the BatchNorm layers of a trained network before their statistics are folded away. Exit "
        "code 0: nothing is red; 1: something is; 2: the input cannot be used. What cannot be told without data or "
        "without knowing the training is named.",
    )
    new.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT|RUN",
        help=".safetensors, or a .pt that holds tensors; or the folder of a run, ended or not, as of train --out: its "
        "network, data and training are known",
    )
    new.add_argument("--model", metavar="SPEC", help="the network, as of export; needed for a checkpoint")
    new.add_argument(
        "--data",
        type=Path,
        metavar="FILE.npz",
        help="inputs as they will be served, rows along axis 0; beside them `labels` (classes) and `mask` (0: padding)",
    )
    new.add_argument(
        "--in-order", action="store_true", help="take rows in the order of the data, as training did without shuffling"
    )
    new.add_argument(
        "--facts", type=Path, metavar="FILE.json", help='what is known of the training, as in {"steps": 900, ...}'
    )
    new.add_argument(
        "--rank",
        action="append",
        type=Path,
        default=[],
        metavar="CHECKPOINT",
        help="of another process of the same run (may be given several times)",
    )
    new.add_argument("--json", type=_json_file, metavar="FILE.json", help="also write the findings here")
    new.add_argument("--html", type=_html_file, metavar="FILE.html", help="also write a page with pictures here")
    _add_shim(new)
    new.set_defaults(command=doctor)


def _add_recalibrate(commands: Commands) -> None:
    new = commands.add_parser(
        "recalibrate",
        help="a run's statistics measured again on data of a new domain, and published",
        description="Measure the BatchNorm statistics of a run that has ended again on data of a new domain, which "
        "need no labels; examine, export, fold, verify and publish the next version. The run's weights stay as they "
        "are.",
    )
    new.add_argument("folder", type=Path, metavar="RUN", help="as given to train --out")
    new.add_argument(
        "--data",
        required=True,
        metavar="NEW",
        help="a data source, as of train; or an .npz that holds the inputs by name, rows along axis 0",
    )
    new.add_argument("--repository", type=Path, default=Path("models"), metavar="DIR", help="default: %(default)s")
    new.add_argument(
        "--mode", choices=("sequential", "minibatch"), default="sequential", help="how; default: %(default)s"
    )
    new.add_argument("--replace", type=_version, metavar="VERSION", help="exchange this version instead of adding one")
    new.set_defaults(command=recalibrate)


def _add_fold(commands: Commands) -> None:
    new = commands.add_parser(
        "fold",
        help="a folded, verified copy of an ONNX file",
        description="Fold every BatchNormalization that can be folded exactly, prove that nothing changed, then write. "
        "What cannot be folded stays, with its reason in the report; that is success, too.",
    )
    new.add_argument("input", type=Path, metavar="IN.onnx")
    new.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.onnx")
    _add_input_shape(new)
    _add_folding(new)
    new.set_defaults(command=fold)


def _add_verify(commands: Commands) -> None:
    new = commands.add_parser(
        "verify",
        help="do two ONNX files agree, and by how much?",
        description="Compare B with A, in float64 and as ONNX Runtime runs them. Exit code 0: B is as good as A; 1: it "
        "is not, and the figures say how far they are apart; 2: they cannot be compared.",
    )
    new.add_argument("first", type=Path, metavar="A.onnx")
    new.add_argument("second", type=Path, metavar="B.onnx")
    _add_input_shape(new)
    _add_samples(new)
    new.add_argument("--report", type=_json_file, metavar="FILE.json", help="also write the figures here")
    new.set_defaults(command=verify)


def _add_publish(commands: Commands) -> None:
    new = commands.add_parser(
        "publish",
        help="an ONNX file into the model repository",
        description="Publish anyone's ONNX file as a version of a model, with golden samples that the service replays "
        "before it answers. The configuration is derived from the file.",
    )
    new.add_argument("input", type=Path, metavar="FILE.onnx")
    new.add_argument("--name", required=True, help="of the model")
    new.add_argument("--repository", type=Path, default=Path("models"), metavar="DIR", help="default: %(default)s")
    new.add_argument(
        "--labels", type=Path, metavar="FILE", help="one label a line, for the output that has as many values"
    )
    new.add_argument("--samples", type=Path, metavar="FILE.npz", help="real inputs, rows along axis 0; else made up")
    new.add_argument("--replace", type=_version, metavar="V", help="exchange this version instead of adding one")
    new.add_argument(
        "--max-batch-size", type=_count, metavar="N", help="rows; 0: never batch; default: the service finds out"
    )
    new.set_defaults(command=publish)


def _add_shim(new: argparse.ArgumentParser) -> None:
    new.add_argument(
        "--torchvision-shim",
        action="store_true",
        help="for timm and torchvision where their wheel does not import beside this build of torch: declare the "
        "operators it misses, empty",
    )


def _add_folding(new: argparse.ArgumentParser) -> None:
    """What `fold` and `export` share."""
    new.add_argument("--profile", choices=PROFILES, default="ort-cpu", help="where it will run; default: %(default)s")
    new.add_argument(
        "--widen",
        action="store_true",
        help="also give tensors a channel of ones where that folds what no weight can hold otherwise",
    )
    new.add_argument(
        "--report",
        action="append",
        type=_report_file,
        default=[],
        metavar="FILE.json|FILE.html",
        help="also write the report here: as data, or as a page (may be given several times)",
    )
    new.add_argument("--no-verify", action="store_true", help="skip the proof; the report says so")
    _add_samples(new)


def _add_input_shape(new: argparse.ArgumentParser) -> None:
    new.add_argument(
        "--input-shape",
        action="append",
        default=[],
        metavar="NAME=1,3,8,8",
        help="for an input with free sizes: one that the model accepts (may be given several times)",
    )


def _add_samples(new: argparse.ArgumentParser) -> None:
    new.add_argument("--samples", type=Path, metavar="FILE.npz", help="real inputs for the proof, rows along axis 0")


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


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds, 0 or more")
    return seconds


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def _count(text: str) -> int:
    """Of rows; 0 for none."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rows: a positive integer, or 0")
    return int(text)


def _widths(text: str) -> tuple[int, ...]:
    return tuple(_positive(part) for part in text.split(","))


def _numbers(text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(math.isfinite(number) for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers, as in 0.485,0.456,0.406")
    return numbers


def _named_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Of an example: (name or "", sizes)."""
    name, _, sizes = text.rpartition("=")
    parts = [part.strip() for part in sizes.split(",")] if sizes.strip() else []
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: expected SIZES or NAME=SIZES, as in 1,3,224,224 or x=1,3,224,224")
    return name, tuple(int(part) for part in parts)


def _named_type(text: str) -> tuple[str, str]:
    name, _, kind = text.rpartition("=")
    if kind not in INPUT_TYPES:
        raise argparse.ArgumentTypeError(f"{text!r}: expected TYPE or NAME=TYPE, one of {', '.join(INPUT_TYPES)}")
    return name, kind


def _json_file(text: str) -> Path:
    return _file(text, ".json")


def _html_file(text: str) -> Path:
    return _file(text, ".html")


def _report_file(text: str) -> Path:
    return _file(text, ".json", ".html")


def _file(text: str, *endings: str) -> Path:
    if not text.lower().endswith(endings):
        raise argparse.ArgumentTypeError(f"{text!r} does not end in {' or '.join(endings)}: what is the report to be?")
    return Path(text)


def _announce(step: str) -> None:
    sys.stderr.write(f"{_harmless(step)}\n")


def _say(message: str, exit_code: int) -> int:
    sys.stderr.write(f"foldtrain: error: {_harmless(' '.join(message.split()))}\n")
    return exit_code


def _harmless(text: str) -> str:
    """Names come from files: to a terminal, a control character in one of them is a command."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in text)


if __name__ == "__main__":
    sys.exit(main())

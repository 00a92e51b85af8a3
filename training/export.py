"""torch module to unoptimised ONNX graph, in memory. The only door to `torch.onnx`. `fold_module`: that, and folded.

Promises: the graph computes what the module computes in eval mode, for any number of rows; its BatchNorm nodes are all
there (folding them is `training.fold`'s work, and the exporter's own optimiser would begin it); and it says nothing
about the machine it was made on. Knows no file format and no data set.
"""

from __future__ import annotations

import copy
import inspect
import io
import itertools
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TypeAlias

import onnx_ir as ir
import torch
from torch import nn

from training import verify as proof
from training.errors import UserError
from training.fold import FoldReport, Profile, fold
from training.fold.normalise import repaired

BATCH_AXIS_NAME = "batch"

ExampleInputs: TypeAlias = torch.Tensor | Sequence[torch.Tensor] | Mapping[str, torch.Tensor]
"""For `forward`: its only input, all in order, or by name."""

_STATIC = "if it is meant for one size of batch only, export it with a fixed one (--static-batch)"


class ExportRefused(UserError):
    """The module is not in a state that inference may be exported from; the text names the submodule."""


def fold_module(
    module: nn.Module,
    example_inputs: ExampleInputs,
    *,
    profile: Profile | str = "ort-cpu",
    widen: bool = False,
    verify: bool = True,
    dynamic_batch: bool = True,
    opset: int | None = None,
) -> tuple[ir.Model, FoldReport]:
    """Export `module`, which stays untouched, fold it, and prove on the examples and on made-up inputs that it is the
    same function.

    Graph inputs bear the names of `forward`'s parameters; axis 0 of each is the batch and free, unless `dynamic_batch`
    is False; a single example row is doubled to show it. `profile`, `widen`: of training.fold.fold. `verify=False`
    leaves the proof out.

    Raises ExportRefused, training.fold.FoldError, training.verify.VerificationFailed.
    """
    refuse_unless_frozen(module)
    examples = name_inputs(module, example_inputs)
    if dynamic_batch:
        examples = {name: at_least_two_rows(example) for name, example in examples.items()}
    outputs = name_outputs(answer(module, examples), taken=examples)
    source = export(module, examples, list(outputs), dynamic_batch=dynamic_batch, opset=opset)
    folded, report = fold(source, profile=profile, widen=widen)
    if verify and report.changed:
        held_out = {name: example.detach().cpu().numpy() for name, example in examples.items()}
        proof.verify(source, folded, proof.make_samples(source, [held_out]))
    return folded, report


def export(
    module: nn.Module,
    examples: Mapping[str, torch.Tensor],
    outputs: Sequence[str],
    *,
    dynamic_batch: bool = True,
    opset: int | None = None,
) -> ir.Model:
    """Export `module`, which stays untouched: a frozen deep copy is traced.

    examples: input name -> an example tensor, in the order of `forward`'s arguments, with at least two rows along axis
    0; that axis becomes the free dimension "batch", all others are fixed. Without `dynamic_batch` every dimension is as
    in the example. outputs: names, in the order of what `forward` returns. opset: the version of ONNX's operators; None
    leaves it to the exporter. Raises ExportRefused.
    """
    refuse_unless_frozen(module)
    too_few = [name for name, example in examples.items() if example.ndim == 0 or len(example) < 2]
    if too_few and dynamic_batch:
        # torch.export makes a dimension of size 0 or 1 a constant: the graph would then take one row only.
        raise ExportRefused(f"example {too_few[0]!r} needs at least two rows along axis 0 to show that it is the batch")
    frozen = copy.deepcopy(module).cpu().requires_grad_(False)
    batch = torch.export.Dim(BATCH_AXIS_NAME)
    axes: tuple[Any, ...] = tuple({0: batch} for _ in examples)
    kinds = {parameter.kind for parameter in inspect.signature(frozen.forward).parameters.values()}
    if inspect.Parameter.VAR_POSITIONAL in kinds and len(kinds) == 1:  # to torch.export `*inputs` is one argument
        axes = (axes,)
    try:
        with _quiet_exporter(), torch.no_grad():
            program = torch.onnx.export(
                frozen,
                tuple(examples.values()),
                input_names=list(examples),
                output_names=list(outputs),
                opset_version=opset,
                dynamic_shapes=axes if dynamic_batch else None,
                dynamo=True,
                optimize=False,  # with True, onnxscript folds some of the BatchNorms, unproven and unreported
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ExportRefused(_told(error, dynamic_batch)) from error
    assert program is not None  # None only when the exporter is asked to write a file
    # torch 2.13 gives a Conv3d(bias=False) a bias of zeros of shape [channels, 2], which no run time takes.
    model = repaired(program.model)
    if opset is not None and model.opset_imports.get("") != opset:
        raise ExportRefused(
            f"torch exports this network with opset {model.opset_imports.get('')} and cannot convert it to {opset}; "
            f"ask for that one, or leave it to torch"
        )
    _name_ends(model.graph, examples, outputs)
    fixed = (
        [v.name for v in model.graph.inputs if v.shape is None or isinstance(v.shape[0], int)] if dynamic_batch else []
    )
    if fixed:
        raise ExportRefused(
            f"input {fixed[0]!r}: the network works for a batch of {len(examples[str(fixed[0])])} rows only; {_STATIC}"
        )
    return _detached(model)


def _name_ends(graph: ir.Graph, inputs: Iterable[str], outputs: Sequence[str]) -> None:
    """As asked, and no name twice. The exporter gives an output that is an input, or another output, one for both."""
    seen = set(graph.inputs)
    for i, value in enumerate(list(graph.outputs)):
        if value in seen:
            copied = ir.node("Identity", [value])
            copied.outputs[0].type, copied.outputs[0].shape = value.type, value.shape
            graph.append(copied)
            graph.outputs[i] = copied.outputs[0]
        seen.add(value)
    ends = dict(zip((*graph.inputs, *graph.outputs), (*inputs, *outputs), strict=True))
    taken = set(ends.values())
    for value in (*graph.initializers.values(), *(output for node in graph.all_nodes() for output in node.outputs)):
        if value in ends or not value.name:
            continue
        if value.name in taken:  # a buffer `mean` and what .mean() makes are both "mean" to the exporter
            number = itertools.count(1)
            value.name = next(name for i in number if (name := f"{value.name}_{i}") not in taken)
        taken.add(value.name)
    for value, name in ends.items():
        value.name = name


def name_inputs(module: nn.Module, example_inputs: ExampleInputs) -> dict[str, torch.Tensor]:
    """The examples in the order of `forward`'s parameters, under their names. Raises ExportRefused.

    A `forward(*args)` has no names to give: its inputs are called as a mapping calls them, or input, input_1, ...
    """
    given = [example_inputs] if isinstance(example_inputs, torch.Tensor) else example_inputs
    if not given or not all(
        isinstance(tensor, torch.Tensor) for tensor in (given.values() if isinstance(given, Mapping) else given)
    ):
        raise ExportRefused("example inputs: expected a tensor, several in order, or a dict of tensors by input name")
    parameters = inspect.signature(module.forward).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        names += list(given) if isinstance(given, Mapping) else []
        names += [f"input_{i}" if i else "input" for i in range(len(names), len(given))]
    first = names[: len(given)]
    if isinstance(given, Mapping) and set(given) != set(first):
        raise ExportRefused(f"example inputs are {', '.join(given)}, but forward takes {', '.join(names)}, in order")
    if len(given) > len(names):
        raise ExportRefused(f"{len(given)} example inputs, but forward takes {len(names)}: {', '.join(names)}")
    return {name: given[name] if isinstance(given, Mapping) else given[i] for i, name in enumerate(first)}


def name_outputs(answered: Any, taken: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of what `forward` returned, in the exporter's order: "output", "output_0", ..., or a dict's keys.

    A name that an input has `taken` gets an underscore. Raises ExportRefused for anything but nested tensors.
    """
    found: dict[str, torch.Tensor] = {}

    def collect(name: str, part: Any) -> None:
        if isinstance(part, torch.Tensor):
            while name in taken or name in found:
                name += "_"
            found[name] = part
        elif isinstance(part, Mapping):
            for key, value in part.items():
                collect(f"{name}_{key}" if name != "output" else str(key), value)
        elif isinstance(part, tuple | list):
            for i, value in enumerate(part):
                collect(f"{name}_{i}", value)
        else:
            raise ExportRefused(f"forward returns a {type(part).__name__}; expected tensors, in tuples, lists or dicts")

    collect("output", answered)
    if not found:
        raise ExportRefused("forward returns no tensor")
    return found


def answer(module: nn.Module, examples: Mapping[str, torch.Tensor]) -> Any:
    """What `forward` itself answers, without gradients. Raises ExportRefused, with the error's own words."""
    try:
        with torch.no_grad():
            return module(*examples.values())
    except Exception as error:  # the module's own code
        shapes = ", ".join(f"{name} {list(example.shape)}" for name, example in examples.items())
        raise ExportRefused(f"the network refuses {shapes}: {type(error).__name__}: {_first_line(error)}") from error


def at_least_two_rows(example: torch.Tensor) -> torch.Tensor:
    """A single row twice; anything else as it is."""
    return torch.cat([example, example]) if example.ndim and len(example) == 1 else example


def refuse_unless_frozen(module: nn.Module) -> None:
    """Raise ExportRefused, naming the submodule, unless everything in `module` is what inference needs.

    The exporter would not complain: it writes a BatchNorm in training mode as if it were in eval mode, and one without
    running statistics as an average over whatever batch a client happens to send.
    """
    for name, part in module.named_modules():
        described = f"module {name or '(the whole network)'!r} ({type(part).__name__})"
        if part.training:
            raise ExportRefused(f"{described} is in training mode; call .eval() on the network before exporting it")
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and (
            part.running_mean is None or part.running_var is None
        ):
            raise ExportRefused(
                f"{described} has no running statistics (track_running_stats=False), so its answer for one row would "
                f"depend on the rows it shares a batch with; train it with running statistics"
            )


def _detached(model: ir.Model) -> ir.Model:
    """Strip what the exporter knows about its origin (stack traces, paths, class names); let go of torch's memory."""
    model.metadata_props.clear()
    model.doc_string = None
    scopes: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for scope in scopes:
        for graph in (scope, *scope.subgraphs()):  # the bodies of If, Loop and Scan included
            graph.metadata_props.clear()
            graph.doc_string = None
            for node in graph:
                _forget_origin(node, *node.outputs)
            _forget_origin(*graph.inputs)
            if isinstance(graph, ir.Graph):
                _forget_origin(*graph.initializers.values())
                _own_tensors(graph)
    return model


def _own_tensors(graph: ir.Graph) -> None:
    for value in graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None  # the exporter writes no initializer without a value
        value.const_value = ir.Tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=value.name)


def _forget_origin(*things: ir.Node | ir.Value) -> None:
    for thing in things:
        thing.metadata_props.clear()
        thing.meta.clear()
        thing.doc_string = None


def _told(error: Exception, dynamic_batch: bool) -> str:
    """The reason in one line. The exporter's own text runs over pages; its cause knows what is wrong."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    hint = f"; {_STATIC}" if dynamic_batch and "Data" not in type(cause).__name__ else ""
    return f"torch cannot export this network: {type(cause).__name__}: {_first_line(cause)}{hint}"


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")[:300]


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence what the user cannot act on; whatever goes wrong is raised, and told in one line.

    torch and onnxscript log each operator of torchvision's that is absent, each attempt that failed before another one
    worked, and print the graph at which one did. torch's own deep copies of tree specifications trip over torch's own
    deprecation of LeafSpec (2.13). And inputs that share the batch dimension, as they must, are told that its name
    "batch" gives way to the name "batch".
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", f"# The axis name: {BATCH_AXIS_NAME} will not be used", UserWarning)
            yield
    finally:
        logging.disable(disabled)

"""Networks that others than torch write: Keras by tf2onnx, Flax by jax2onnx; folded, compared: `make test-exporters`.

Both compute on channels-last images, which their exporters turn around. tf2onnx folds what follows a convolution itself
and writes every other BatchNorm as Mul and Add; jax2onnx keeps it. A network fails where more of its maps are left than
is stated here, where the folded file is not the same function in float64, or where it is further from the framework's
own answer than the exported one.
Run by the interpreter of an environment with the fold extra and `exporters.txt`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow", "JAX_PLATFORMS": "cpu"}

import jax.numpy as jnp
import keras
import numpy as np
import onnx
from flax import nnx
from jax2onnx import to_onnx
from keras import applications, layers

from tests.benchmarks.machine import heading
from training.algebra import Algebra
from training.fold import FoldReport, Verdict, fold, read_model
from training.verify import run

Array = np.ndarray[Any, Any]
ROWS, SETTLING_ROWS = 2, 8
WORSE = 10.0  # times the exported file's own error, at most: one draw, beside the exact comparison in float64
FLOOR = 1e-6  # of the output's scale: an export closer than that was lucky
KERAS_MAP = "batchnorm/"  # in the names of the Mul and Add that tf2onnx makes of one


@dataclass(frozen=True)
class Exported:
    """A file, an input, and what the framework makes of it."""

    path: Path
    x: Array
    y: Array


# --- Keras -----------------------------------------------------------------------------------------------------------


def _normed(x: Any, layer: Any, activation: str | None = "relu", **options: Any) -> Any:
    x = layers.BatchNormalization(**options)(layer(x))
    return layers.Activation(activation)(x) if activation else x


def _scored(x: Any, source: Any, classes: int = 4) -> keras.Model:
    return keras.Model(source, layers.Dense(classes)(x))


def behind() -> keras.Model:
    """A BatchNorm behind every kind of layer for images, padded as Keras pads: more at the end."""
    source = x = keras.Input((16, 16, 3))
    x = _normed(x, layers.Conv2D(8, 3, padding="same", use_bias=False))
    x = _normed(x, layers.Conv2D(8, 3, strides=2, padding="same"))
    x = _normed(x, layers.SeparableConv2D(12, 3, padding="same", use_bias=False), "relu6")
    x = _normed(x, layers.DepthwiseConv2D(3, strides=2, padding="same"), "swish")
    x = _normed(x, layers.Conv2DTranspose(6, 3, strides=2, padding="same"))
    x = layers.GlobalAveragePooling2D()(x)
    return _scored(_normed(x, layers.Dense(10, use_bias=False)), source)


def padded() -> keras.Model:
    source = x = keras.Input((17, 17, 3))
    x = _normed(layers.ZeroPadding2D(1)(x), layers.Conv2D(8, 3, strides=2))
    x = _normed(layers.ZeroPadding2D(((0, 1), (0, 1)))(x), layers.DepthwiseConv2D(3, strides=2))
    x = _normed(x, layers.Conv2D(6, 1, use_bias=False), None)
    x = layers.Flatten()(layers.LeakyReLU()(layers.Dropout(0.3)(x)))
    x = layers.BatchNormalization()(_normed(x, layers.Dense(12, use_bias=False)))
    return _scored(x, source)


def preactivated() -> keras.Model:
    def front(x: Any) -> Any:
        return layers.ReLU()(layers.BatchNormalization()(x))

    source = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, padding="same")(source)
    for stride in (1, 2, 1):
        y = front(x)
        z = layers.Conv2D(8, 3, strides=stride, padding="same")(y)
        z = layers.Conv2D(8, 3, padding="same")(front(z))
        x = layers.Add()([z, x if stride == 1 else layers.Conv2D(8, 1, strides=2)(y)])
    return _scored(layers.GlobalAveragePooling2D()(front(x)), source)


def dense() -> keras.Model:
    def front(x: Any) -> Any:
        return layers.ReLU()(layers.BatchNormalization()(x))

    source = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, padding="same")(source)
    for _ in range(4):
        y = layers.Conv2D(16, 1)(front(x))
        x = layers.Concatenate()([x, layers.Conv2D(4, 3, padding="same")(front(y))])
    return _scored(layers.GlobalMaxPooling2D()(front(layers.AveragePooling2D(2)(x))), source)


def unet() -> keras.Model:
    source = keras.Input((16, 16, 3))
    skip = _normed(source, layers.Conv2D(8, 3, padding="same"))
    x = _normed(layers.MaxPooling2D()(skip), layers.Conv2D(16, 3, padding="same"))
    x = _normed(x, layers.Conv2DTranspose(8, 2, strides=2, padding="same"))
    x = _normed(layers.Concatenate()([x, skip]), layers.Conv2D(8, 3, padding="same"))
    x = layers.BatchNormalization()(layers.UpSampling2D()(x))
    return keras.Model(source, layers.Conv2D(2, 1)(x))


def signals() -> keras.Model:
    source = x = keras.Input((32, 5))
    x = _normed(x, layers.Conv1D(8, 5, padding="same"))
    x = _normed(x, layers.Conv1D(8, 3, padding="causal"))
    x = _normed(x, layers.SeparableConv1D(8, 3, padding="same"))
    x = layers.BatchNormalization()(layers.MaxPooling1D()(x))
    return _scored(layers.GlobalAveragePooling1D()(layers.Conv1D(6, 3)(x)), source)


def volumes() -> keras.Model:
    source = x = keras.Input((8, 8, 8, 2))
    x = _normed(x, layers.Conv3D(6, 3, padding="same"))
    x = _normed(x, layers.Conv3D(6, 3, strides=2, padding="same"))
    x = layers.Conv3D(4, 1)(layers.BatchNormalization()(layers.MaxPooling3D()(x)))
    return _scored(layers.BatchNormalization()(layers.Flatten()(x)), source)


def rows() -> keras.Model:
    source = x = keras.Input((20,))
    x = layers.BatchNormalization()(x)
    for units in (16, 12):
        x = layers.BatchNormalization()(layers.Dense(units, activation="relu")(x))
    return _scored(x, source)


def steps() -> keras.Model:
    source = x = keras.Input((12, 5))
    x = layers.BatchNormalization()(x)
    x = layers.ReLU()(layers.BatchNormalization()(layers.Dense(8)(x)))
    x = layers.BatchNormalization()(layers.LSTM(6, return_sequences=True)(x))
    return _scored(layers.BatchNormalization()(layers.GRU(5)(x)), source)


def sloped() -> keras.Model:
    """Without scale, without shift, around a PReLU, behind a Rescaling."""
    source = x = keras.Input((12, 12, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1)(x)
    x = _normed(x, layers.Conv2D(8, 3, padding="valid"), None)
    x = layers.BatchNormalization(scale=False)(layers.PReLU(shared_axes=[1, 2])(x))
    x = layers.Conv2D(8, 3)(x)
    x = layers.ELU()(layers.BatchNormalization(center=False)(x))
    return _scored(layers.GlobalAveragePooling2D()(x), source)


def _application(name: str, side: int = 64, **options: Any) -> Callable[[], keras.Model]:
    return lambda: getattr(applications, name)(weights=None, input_shape=(side, side, 3), classes=10, **options)


def export_keras(build: Callable[[], keras.Model], path: Path) -> Exported:
    keras.utils.set_random_seed(0)
    model, rng = build(), np.random.default_rng(0)
    shape = model.input_shape[1:]
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.0  # the statistics of the one batch below
            if layer.scale:
                layer.gamma.assign(_scales(rng, layer.gamma.shape))
            if layer.center:
                layer.beta.assign(0.2 * rng.normal(size=layer.beta.shape))
        if isinstance(layer, layers.PReLU):
            layer.alpha.assign(rng.uniform(0.05, 0.4, layer.alpha.shape))
    model(rng.normal(size=(SETTLING_ROWS, *shape)).astype(np.float32), training=True)
    x = rng.normal(size=(ROWS, *shape)).astype(np.float32)
    model.export(path, format="onnx", verbose=False)
    return Exported(path, x, np.asarray(model(x, training=False)))


# --- Flax ------------------------------------------------------------------------------------------------------------


class Residual(nnx.Module):
    """Behind convolutions, behind and in front of a sum, behind a Linear."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.down = nnx.Conv(8, 8, (3, 3), strides=2, use_bias=False, rngs=rngs)
        self.depthwise = nnx.Conv(8, 8, (3, 3), feature_group_count=8, rngs=rngs)
        self.linear = nnx.Linear(8, 12, use_bias=False, rngs=rngs)
        self.scores = nnx.Linear(12, 4, rngs=rngs)
        sizes = (8, 8, 8, 8, 12)
        self.norms = nnx.List(nnx.BatchNorm(size, use_running_average=True, rngs=rngs) for size in sizes)

    def __call__(self, x: Any) -> Any:
        first, second, third, fourth, fifth = self.norms
        x = nnx.relu(second(self.down(nnx.relu(first(self.stem(x))))))
        x = nnx.relu(fourth(x + third(self.depthwise(x))))
        return self.scores(nnx.relu(fifth(self.linear(jnp.mean(x, axis=(1, 2))))))


class Preactivated(nnx.Module):
    """In front of convolutions."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.convs = nnx.List(nnx.Conv(8, 8, (3, 3), use_bias=False, rngs=rngs) for _ in range(4))
        self.norms = nnx.List(nnx.BatchNorm(8, use_running_average=True, rngs=rngs) for _ in range(5))
        self.scores = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = self.stem(x)
        for i in (0, 2):
            y = self.convs[i](nnx.relu(self.norms[i](x)))
            x = x + self.convs[i + 1](nnx.relu(self.norms[i + 1](y)))
        return self.scores(jnp.mean(nnx.relu(self.norms[4](x)), axis=(1, 2)))


def export_flax(build: Callable[[nnx.Rngs], Any], path: Path) -> Exported:
    module, rng = build(nnx.Rngs(0)), np.random.default_rng(0)
    for norm in module.norms:
        size = norm.scale.shape
        norm.scale[...] = _scales(rng, size)
        norm.bias[...] = 0.2 * rng.normal(size=size)
        norm.mean[...] = 0.3 * rng.normal(size=size)
        norm.var[...] = rng.uniform(0.5, 2, size)
    onnx.save(to_onnx(module, [("rows", 16, 16, 3)]), path)
    x = rng.normal(size=(ROWS, 16, 16, 3)).astype(np.float32)
    return Exported(path, x, np.asarray(module(x)))


def _scales(rng: np.random.Generator, shape: Any) -> Array:
    return rng.uniform(0.7, 1.3, shape) * np.where(rng.random(shape) < 0.1, -1, 1)


# --- The table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """`left`: maps of BatchNorms that stay, and why is beside it."""

    exporter: str
    export: Callable[[Path], Exported]
    left: int = 0


def _keras(build: Callable[[], keras.Model], left: int = 0) -> Network:
    return Network("tf2onnx", lambda path: export_keras(build, path), left)


def _flax(build: Callable[[nnx.Rngs], Any]) -> Network:
    return Network("jax2onnx", lambda path: export_flax(build, path))


NETWORKS = {
    "behind": _keras(behind),
    "padded": _keras(padded),
    "preactivated": _keras(preactivated),
    "dense": _keras(dense),
    "unet": _keras(unet),
    "signals": _keras(signals),
    "volumes": _keras(volumes),
    "rows": _keras(rows),
    "sloped": _keras(sloped),
    # The Mul and the Add between an LSTM, which holds no map of its output, and the Loop that a GRU becomes.
    "steps": _keras(steps, left=2),
    "MobileNet": _keras(_application("MobileNet")),
    "MobileNetV2": _keras(_application("MobileNetV2")),
    "MobileNetV3Small": _keras(_application("MobileNetV3Small", include_preprocessing=False)),
    "ResNet50V2": _keras(_application("ResNet50V2")),
    "DenseNet121": _keras(_application("DenseNet121")),
    "EfficientNetV2B0": _keras(_application("EfficientNetV2B0", include_preprocessing=False)),
    "flax residual": _flax(Residual),
    "flax preactivated": _flax(Preactivated),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.zoo.exporters", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, metavar="NAME", help=f"of {', '.join(NETWORKS)}")
    names: Sequence[str] = parser.parse_args().only or list(NETWORKS)
    warnings.simplefilter("ignore")  # the exporters' own
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("keras", "tf2onnx", "flax", "jax2onnx"))
    print(f"{heading('exporters')}, {versions}\n", flush=True)
    print("| network | exporter | maps | left | other maps folded | nodes | then | s | error |  |", flush=True)
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    failures = [name for name in names if not attempt(name, NETWORKS[name])]
    print(f"\n{len(names)} networks" + (f"; failed: {', '.join(failures)}" if failures else ""))
    return bool(failures)


def attempt(name: str, network: Network) -> bool:
    """One row of the table; was it as it should be?"""
    with tempfile.TemporaryDirectory() as folder:
        exported = network.export(Path(folder) / "model.onnx")
        model = read_model(exported.path)
        begin = time.perf_counter()
        folded, report = fold(model, "generic")
        seconds = time.perf_counter() - begin
        inputs = {model.graph.inputs[0].name or "": exported.x}
        algebra = Algebra(model, folded)
        same = all(finding.holds for finding in algebra.judge(inputs, algebra.expected(inputs)))
        before, after = (_error(next(iter(run(graph, inputs).values())), exported.y) for graph in (model, folded))
    found, left = maps(report)
    ratio = after / max(before, FLOOR)
    wrong = [f"{len(left)} left, expected {network.left}"] * (len(left) != network.left)
    wrong += ["another function"] * (not same)
    wrong += [f"error {after:.2g}, export's {before:.2g}"] * (not ratio <= WORSE)
    others = report.summary()["affines_folded"] + report.summary()["folded"] - (found - len(left))
    told = "; ".join([*wrong, *left]).replace("|", "/")
    numbers = f"{found} | {len(left)} | {others} | {report.nodes_before} | {report.nodes_after}"
    print(f"| {name} | {network.exporter} | {numbers} | {seconds:.1f} | {ratio:.2f} | {told} |", flush=True)
    return not wrong


def maps(report: FoldReport) -> tuple[int, list[str]]:
    """How many maps of BatchNorms the file held, and why those are left that are."""
    outcomes = [*report.batchnorms, *(outcome for outcome in report.affines if KERAS_MAP in outcome.name)]
    return len(outcomes), [outcome.reason for outcome in outcomes if outcome.verdict is not Verdict.FOLDED]


def _error(found: Array, wanted: Array) -> float:
    """Of the output's scale."""
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


if __name__ == "__main__":
    sys.exit(main())

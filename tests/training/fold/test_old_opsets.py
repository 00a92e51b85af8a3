"""Whole networks as they were written years ago: folded in their own opset, right by ONNX Runtime on a newer twin.

ONNX Runtime runs opset 7 and newer; what differs before that is in `OPSETS`, one row a spelling. The network is the
same in all of them, so that the newest one tells what the others compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from string import Template

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.training.fold.models import Array, build, mild_statistics, op_types, rng_of
from training.algebra import Algebra
from training.fold import Profile, fold
from training.reference import evaluate
from training.verify import run

NETWORK = """m (float[2,3,10,12] x) => (float[2,5] y) {
    g1 = Constant <value = float[4] {1.5, -0.5, 0.75, 2}> ()
    [pad] p = $pad
    [conv1] c1 = Conv <kernel_shape = [3, 3]> (p, w1, k1)
    [bn1] n1 = BatchNormalization $bn (c1, g1, b1, m1, v1)
    [relu1] r1 = Relu $consumed (n1)
    [pool] q = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r1)
    [drop] d = Dropout $drop (q)
    [bn2] n2 = BatchNormalization $bn (d, g2, b2, m2, v2)
    [conv2] c2 = Conv <kernel_shape = [1, 1], group = 2> (n2, w2)
    [bias2] a2 = $bias
    [bn3] n3 = BatchNormalization $bn (a2, g3, b3, m3, v3)
    [sum] s = Sum $consumed (n3, d)
    [up] u = $up
    [conv3] c3 = Conv <kernel_shape = [3, 3], auto_pad = "SAME_UPPER"> (u, w3)
    [bn4] n4 = BatchNormalization <$epsilon> (c3, g4, b4, m4, v4)
    [relu4] r4 = Relu $consumed (n4)
    [mean] o = GlobalAveragePool (r4)
    [flat] f = $flat
    [gemm] e = Gemm $gemm (f, w4, k4)
    [bn5] y = BatchNormalization $bn (e, g5, b5, m5, v5) }"""
BATCHNORMS = 5


@dataclass(frozen=True)
class Spelling:
    """What stands for `$name` in the network, and constants that only this spelling has."""

    words: Mapping[str, str]
    constants: Mapping[str, Array]
    ir_version: int = 3


def spelling(older: Spelling, words: Mapping[str, str], ir_version: int = 3, **constants: Array) -> Spelling:
    return Spelling({**older.words, **words}, {**older.constants, **constants}, ir_version)


OPSETS = {
    1: Spelling(
        {
            "pad": 'Pad <mode = "constant", paddings = [0, 0, 1, 0, 0, 0, 1, 2], value = 0.0> (x)',
            "bn": "<is_test = 1, consumed_inputs = [0, 0, 0, 1, 1]>",
            "epsilon": "is_test = 1, consumed_inputs = [0, 0, 0, 1, 1], epsilon = 0.001",
            "consumed": "<consumed_inputs = [0, 0]>",
            "drop": "<is_test = 1, ratio = 0.3>",
            "bias": "Add <axis = 1, broadcast = 1> (c2, k2)",
            "up": 'Upsample <height_scale = 2.0, width_scale = 2.0, mode = "nearest"> (s)',
            "flat": "Reshape <shape = [0, -1]> (o)",
            "gemm": "<broadcast = 1, transB = 1, alpha = 0.5>",
        },
        {"k2": rng_of(12).normal(size=4)},
    )
}
OPSETS[5] = spelling(OPSETS[1], {"flat": "Reshape (o, rows)",
                                 "pad": 'Pad <mode = "constant", pads = [0, 0, 1, 0, 0, 0, 1, 2]> (x)'},
                     rows=np.array([0, -1]))  # fmt: skip
OPSETS[6] = spelling(OPSETS[5], {"bn": "<is_test = 1>", "epsilon": "is_test = 1, epsilon = 0.001", "consumed": ""})
OPSETS[7] = spelling(OPSETS[6], {"bn": "", "epsilon": "epsilon = 0.001", "drop": "<ratio = 0.3>",
                                 "up": 'Upsample <scales = [1.0, 1.0, 2.0, 2.0], mode = "nearest"> (s)',
                                 "bias": "Add (c2, k2)", "gemm": "<transB = 1, alpha = 0.5>"},
                     k2=rng_of(12).normal(size=4).reshape(4, 1, 1))  # fmt: skip
OPSETS[8] = spelling(OPSETS[7], {"bn": "<spatial = 1, momentum = 0.5>"})
OPSETS[9] = spelling(OPSETS[7], {"up": 'Upsample <mode = "nearest"> (s, scales)'},
                     scales=np.array([1, 1, 2, 2], np.float32))  # fmt: skip
OPSETS[13] = spelling(OPSETS[9], {"pad": "Pad (x, pads)", "drop": "",
                                  "up": 'Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric",'
                                        ' nearest_mode = "floor"> (s, , scales)'},
                      ir_version=8, pads=np.array([0, 0, 1, 0, 0, 0, 1, 2]))  # fmt: skip
FIRST_THAT_RUNS, NEWEST = 7, 13
X = rng_of(5).normal(size=(2, 3, 10, 12)).astype(np.float32)


def network(opset: int) -> ir.Model:
    chosen, rng = OPSETS[opset], rng_of(1)
    constants: dict[str, Array] = {
        name: rng.normal(size=shape)
        for name, shape in {
            "w1": (4, 3, 3, 3), "k1": (4,), "w2": (4, 2, 1, 1), "w3": (6, 4, 3, 3), "w4": (5, 6), "k4": (5,),
        }.items()
    }  # fmt: skip
    for suffix, channels in (("1", 4), ("2", 4), ("3", 4), ("4", 6), ("5", 5)):
        constants |= {f"{key}{suffix}": part for key, part in mild_statistics(rng, channels).items()}
    del constants["g1"]  # it is in a Constant node
    constants |= chosen.constants
    constants = {name: a.astype(np.float32) if a.dtype == np.float64 else a for name, a in constants.items()}
    text = Template(NETWORK).substitute(chosen.words)
    return build(text, opset, chosen.ir_version, **constants)


def with_weights_as_inputs(model: ir.Model) -> ir.Model:
    """As files of IR version 3 have to have it: every initializer is an input, too."""
    for value in model.graph.initializers.values():
        model.graph.inputs.append(value)
    return model


@pytest.fixture(scope="module")
def answer() -> Array:
    return run(network(NEWEST), {"x": X})["y"]


@pytest.mark.parametrize("opset", OPSETS)
def test_the_spellings_are_one_network(opset: int, answer: Array) -> None:
    model = network(opset)

    onnx.checker.check_model(ir.to_proto(with_weights_as_inputs(model.clone())), full_check=True)
    np.testing.assert_allclose(evaluate(model, {"x": X})["y"], answer, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("opset", OPSETS)
def test_it_folds_fully_and_answers_as_onnx_runtime_does(opset: int, answer: Array) -> None:
    model = network(opset)

    folded, report = fold(model, Profile.GENERIC)

    assert report.summary()["folded"] == BATCHNORMS, report.as_text()
    assert "BatchNormalization" not in op_types(folded)
    onnx.checker.check_model(ir.to_proto(with_weights_as_inputs(folded.clone())), full_check=True)
    algebra = Algebra(model, folded)
    assert all(finding.holds for finding in algebra.judge({"x": X}, algebra.expected({"x": X})))
    found = run(folded, {"x": X}) if opset >= FIRST_THAT_RUNS else evaluate(folded, {"x": X})
    np.testing.assert_allclose(found["y"], answer, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("opset", OPSETS)
def test_weights_that_a_caller_may_replace_are_never_folded(opset: int) -> None:
    model = with_weights_as_inputs(network(opset))

    folded, report = fold(model, Profile.GENERIC)

    assert report.summary()["kept"] == BATCHNORMS
    assert op_types(folded) == op_types(model)

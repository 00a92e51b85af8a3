"""Blocks of published networks, written as their exporters write them: each becomes one convolution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import pytest

from tests.training.fold.branches.support import batchnorm, facts, merge
from tests.training.fold.models import build, op_types, rng_of
from training.fold.branches import merge_branches

BN = "BatchNormalization"


@dataclass(frozen=True)
class Block:
    """`branches`: a chain of calls each, `{x}` being what runs through; a weight's shape goes by its name."""

    branches: tuple[tuple[str, ...], ...]
    weights: dict[str, tuple[int, ...]]
    channels: int = 4
    out: int = 4
    size: tuple[int, int] = (6, 7)
    out_size: tuple[int, int] = (6, 7)
    kernel: tuple[int, ...] = (3, 3)
    group: int = 1
    pads: tuple[int, ...] = (1, 1, 1, 1)
    strides: tuple[int, ...] = (1, 1)
    dilations: tuple[int, ...] = (1, 1)


def model_of(block: Block, seed: int = 0, opset: int = 17) -> ir.Model:
    """Sum of the branches of x, then ReLU. `bn` is a BatchNormalization with statistics of its own."""
    rng = rng_of(seed)
    lines, constants, ends = [], {name: rng.normal(size=shape) for name, shape in block.weights.items()}, []
    for b, branch in enumerate(block.branches):
        at = "x"
        for i, call in enumerate(branch):
            after, call = f"t{b}_{i}", call.replace("{x}", at)
            if call.startswith("bn"):
                channels = int(call[2:] or block.out)
                name = f"bn{b}_{i}"
                constants |= batchnorm(rng, name, channels)
                call = f"{BN} ({at}, {name}_g, {name}_b, {name}_m, {name}_v)"
            lines.append(f"[n{b}_{i}] {after} = {call}")
            at = after
        ends.append(at)
    total = ends[0]
    for i, end in enumerate(ends[1:]):
        lines.append(f"[add{i}] s{i} = Add ({total}, {end})")
        total = f"s{i}"
    h, w = block.size
    p, q = block.out_size
    head = f"g (double[2,{block.channels},{h},{w}] x) => (double[2,{block.out},{p},{q}] y)"
    return build(f"{head} {{ {chr(10).join(lines)}\n[relu] y = Relu ({total}) }}", opset=opset, **constants)


SAME = "<pads = [1, 1, 1, 1]>"
DEPTHWISE = "<pads = [1, 1, 1, 1], group = 6>"
BLOCKS = {
    "RepVGG, stride 1": Block(
        ((f"Conv {SAME} ({{x}}, w3)", "bn"), ("Conv ({x}, w1)", "bn"), ("bn",)),
        {"w3": (4, 4, 3, 3), "w1": (4, 4, 1, 1)},
    ),
    "RepVGG, stride 2, without identity": Block(
        (("Conv <pads = [1,1,1,1], strides = [2,2]> ({x}, w3)", "bn"), ("Conv <strides = [2,2]> ({x}, w1)", "bn")),
        {"w3": (5, 4, 3, 3), "w1": (5, 4, 1, 1)},
        out=5,
        out_size=(3, 4),
        strides=(2, 2),
    ),
    "RepVGG, grouped": Block(
        (
            ("Conv <pads = [1,1,1,1], group = 2> ({x}, w3)", "bn"),
            ("Conv <group = 2> ({x}, w1)", "bn"),
            ("bn",),
        ),
        {"w3": (4, 2, 3, 3), "w1": (4, 2, 1, 1)},
        group=2,
    ),
    "MobileOne, depthwise": Block(
        (
            *((f"Conv {DEPTHWISE} ({{x}}, w3{i})", "bn") for i in range(4)),
            ("Conv <group = 6> ({x}, w1)", "bn"),
            ("bn",),
        ),
        {**{f"w3{i}": (6, 1, 3, 3) for i in range(4)}, "w1": (6, 1, 1, 1)},
        channels=6,
        out=6,
        group=6,
    ),
    "MobileOne, pointwise": Block(
        (*((f"Conv ({{x}}, w{i})", "bn") for i in range(4)), ("bn",)),
        {f"w{i}": (4, 4, 1, 1) for i in range(4)},
        kernel=(1, 1),
        pads=(0, 0, 0, 0),
    ),
    "MobileOne, pointwise to another width": Block(
        tuple((f"Conv ({{x}}, w{i})", "bn") for i in range(4)),
        {f"w{i}": (7, 4, 1, 1) for i in range(4)},
        out=7,
        kernel=(1, 1),
        pads=(0, 0, 0, 0),
    ),
    "ACNet": Block(
        (
            (f"Conv {SAME} ({{x}}, w33)", "bn"),
            ("Conv <pads = [0, 1, 0, 1]> ({x}, w13)", "bn"),
            ("Conv <pads = [1, 0, 1, 0]> ({x}, w31)", "bn"),
        ),
        {"w33": (4, 4, 3, 3), "w13": (4, 4, 1, 3), "w31": (4, 4, 3, 1)},
    ),
    "RepGhost: a convolution and the BatchNormalization of its input": Block(
        ((f"Conv {DEPTHWISE} ({{x}}, w)", "bn"), ("bn",)), {"w": (6, 1, 3, 3)}, channels=6, out=6, group=6
    ),
    "RepViT: depthwise 3x3, 1x1 and identity": Block(
        ((f"Conv {DEPTHWISE} ({{x}}, w3)", "bn"), ("Conv <group = 6> ({x}, w1, b1)",), ()),
        {"w3": (6, 1, 3, 3), "w1": (6, 1, 1, 1), "b1": (6,)},
        channels=6,
        out=6,
        group=6,
    ),
    "FastViT: large and small depthwise kernel": Block(
        (
            ("Conv <pads = [3, 3, 3, 3], group = 6> ({x}, w7)", "bn"),
            (f"Conv {DEPTHWISE} ({{x}}, w3)", "bn"),
        ),
        {"w7": (6, 1, 7, 7), "w3": (6, 1, 3, 3)},
        channels=6,
        out=6,
        group=6,
        kernel=(7, 7),
        pads=(3, 3, 3, 3),
    ),
    "DBB: 3x3, 1x1, 1x1 with padding then 3x3 without, and a mean over 3x3": Block(
        (
            (f"Conv {SAME} ({{x}}, w)", "bn"),
            ("Conv ({x}, w1)", "bn"),
            ("Conv <pads = [1, 1, 1, 1]> ({x}, wa)", "bn", "Conv ({x}, wb)", "bn"),
            (
                "Conv <pads = [1, 1, 1, 1]> ({x}, wc)",
                "bn",
                "AveragePool <kernel_shape = [3, 3]> ({x})",
                "bn",
            ),
        ),
        {"w": (4, 4, 3, 3), "w1": (4, 4, 1, 1), "wa": (4, 4, 1, 1), "wb": (4, 4, 3, 3), "wc": (4, 4, 1, 1)},
    ),
    "a mean whose padding counts": Block(
        (
            (f"Conv {DEPTHWISE} ({{x}}, w)",),
            ("AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1> ({x})",),
        ),
        {"w": (6, 1, 3, 3)},
        channels=6,
        out=6,
        group=6,
    ),
    "a 1x1 without bias before a padded 3x3": Block(
        (("Conv ({x}, wa)", f"Conv {SAME} ({{x}}, wb)", "bn"), ("bn",)), {"wa": (9, 4, 1, 1), "wb": (4, 9, 3, 3)}
    ),
    "3x3 then 1x1": Block(
        ((f"Conv {SAME} ({{x}}, wa, ba)", "bn9", "Conv ({x}, wb)"), ("Conv ({x}, w1)",)),
        {"wa": (9, 4, 3, 3), "ba": (9,), "wb": (4, 9, 1, 1), "w1": (4, 4, 1, 1)},
    ),
    "a smaller dilation inside a larger kernel": Block(
        (
            ("Conv <pads = [4, 4, 4, 4]> ({x}, w9)",),
            ("Conv <pads = [4, 4, 4, 4], dilations = [4, 4]> ({x}, w3)",),
            ("Conv <pads = [2, 1, 2, 1], dilations = [2, 1]> ({x}, v3)",),
        ),
        {"w9": (4, 4, 9, 9), "w3": (4, 4, 3, 3), "v3": (4, 4, 3, 3)},
        kernel=(9, 9),
        pads=(4, 4, 4, 4),
    ),
    "a dilated kernel and its centre": Block(
        (("Conv <pads = [2, 2, 2, 2], dilations = [2, 2]> ({x}, w3)",), ("Conv ({x}, w1)",)),
        {"w3": (4, 4, 3, 3), "w1": (4, 4, 1, 1)},
        pads=(2, 2, 2, 2),
        dilations=(2, 2),
    ),
    "residual of a convolution and its BatchNormalization": Block(
        ((f"Conv {SAME} ({{x}}, w)", "bn"), ()), {"w": (4, 4, 3, 3)}
    ),
    "layer scale": Block(
        ((f"Conv {DEPTHWISE} ({{x}}, w)", "Mul ({x}, scale)"), ()),
        {"w": (6, 1, 3, 3), "scale": (1, 6, 1, 1)},
        channels=6,
        out=6,
        group=6,
    ),
    "maps before an unpadded convolution": Block(
        (("Mul ({x}, scale)", "bn", "Conv ({x}, w)"), ("Conv ({x}, v)",)),
        {"scale": (4, 1, 1), "w": (4, 4, 1, 1), "v": (4, 4, 1, 1)},
        kernel=(1, 1),
        pads=(0, 0, 0, 0),
    ),
    "uneven pads": Block(
        (("Conv <pads = [0, 1, 2, 1]> ({x}, w)",), ("Conv <pads = [2, 1, 0, 1]> ({x}, v)",), ()),
        {"w": (4, 4, 3, 3), "v": (4, 4, 3, 3)},
        kernel=(5, 3),
        pads=(2, 1, 2, 1),
    ),
    "auto_pad SAME on a known size": Block(
        (('Conv <auto_pad = "SAME_UPPER"> ({x}, w)',), ("Conv ({x}, v)",), ()),
        {"w": (4, 4, 3, 3), "v": (4, 4, 1, 1)},
    ),
    "coincident sizes": Block(
        (("Conv <pads = [1, 1, 1, 1]> ({x}, w)", "Mul ({x}, k)"), ("Conv ({x}, v)", "bn"), ("bn",)),
        {"w": (2, 2, 3, 3), "v": (2, 2, 1, 1), "k": (2, 1, 1)},
        channels=2,
        out=2,
        size=(2, 2),
        out_size=(2, 2),
    ),
    "different slack, same size for this image": Block(
        (("Conv <strides = [2,2]> ({x}, w2)",), ("Conv <strides = [2,2]> ({x}, w1)",)),
        {"w2": (4, 4, 2, 2), "w1": (4, 4, 1, 1)},
        size=(6, 8),
        out_size=(3, 4),
        kernel=(2, 2),
        pads=(0, 0, 0, 0),
        strides=(2, 2),
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_becomes_one_convolution(name: str) -> None:
    block = BLOCKS[name]
    model = model_of(block)
    (record,) = merge(model)
    assert op_types(model) == ["Conv", "Relu"]
    conv = model.graph[0]
    assert conv.name == record.node
    assert {key: attribute.value for key, attribute in conv.attributes.items()} == {
        "kernel_shape": block.kernel,
        "pads": block.pads,
        "strides": block.strides,
        "dilations": block.dilations,
        "group": block.group,
    }


def test_the_record_names_what_is_gone() -> None:
    (record,) = merge(model_of(BLOCKS["RepVGG, stride 1"]))
    assert record.node == "n0_0"
    assert set(record.replaced) == {"n0_0", "n1_0", "add0", "add1"}
    assert set(record.batchnorms) == {"n0_1", "n1_1", "n2_0"}


def test_the_result_keeps_the_sums_tensor_and_the_largest_convolutions_weight_names() -> None:
    model = model_of(BLOCKS["RepVGG, stride 1"])
    merge(model)
    assert model.graph[0].outputs[0].name == "s1"
    assert set(model.graph.initializers) == {"w3", "w3_bias"}


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 15, 21])
def test_every_opset_since_broadcasting(opset: int) -> None:
    model = model_of(BLOCKS["RepVGG, grouped"], opset=opset)
    merge(model)
    assert op_types(model) == ["Conv", "Relu"]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_each_weight_is_rounded_once(dtype: type) -> None:
    """Three branches of which any two would round: the third is what the sum of the two lost."""
    one, tiny = np.ones((1, 1, 1, 1), dtype), np.full((1, 1, 1, 1), np.finfo(dtype).eps / 2, dtype)
    kind = {np.float16: "float16", np.float32: "float"}[dtype]
    graph = f"""g ({kind}[1,1,2,2] x) => ({kind}[1,1,2,2] y) {{
        a = Conv (x, one)
        b = Conv (x, tiny)
        c = Conv (x, tiny2)
        ab = Add (a, b)
        y = Add (ab, c)
    }}"""
    model = build(graph, one=one, tiny=tiny, tiny2=tiny.copy())
    # Not `merge`: its bounds are those of float64.
    assert len(merge_branches(model, facts(model))) == 1
    weight = next(iter(model.graph.initializers.values())).const_value
    assert weight is not None and weight.numpy().dtype == dtype
    assert weight.numpy().item() == 1 + np.finfo(dtype).eps

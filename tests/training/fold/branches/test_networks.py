"""Whole networks of branches: one convolution a block, and nothing else than before around them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx_ir as ir

from tests.training.fold.branches.support import batchnorm, facts
from tests.training.fold.models import Array, build, op_types, reload, rng_of
from training.fold.branches import merge_branches
from training.reference import evaluate

# RepVGG-A0 at a quarter of its width: 22 blocks, the first of each stage with stride 2.
STAGES = ((1, 12), (2, 12), (4, 24), (14, 48), (1, 320))


def repvgg_a0(rng: np.random.Generator) -> tuple[ir.Model, int]:
    widths = [3] + [width for count, width in STAGES for _ in range(count)]
    strides = [2 if at == 0 else 1 for count, _ in STAGES for at in range(count)]
    lines: list[str] = []
    constants: dict[str, Array] = {}

    def norm(x: str, name: str, channels: int) -> str:
        constants.update({k: v.astype(np.float32) for k, v in batchnorm(rng, name, channels).items()})
        lines.append(f"[{name}] {name}_out = BatchNormalization ({x}, {name}_g, {name}_b, {name}_m, {name}_v)")
        return f"{name}_out"

    x = "image"
    for i, ((inputs, outputs), stride) in enumerate(zip(pairwise(widths), strides, strict=True)):
        total = ""
        for kernel in (3, 1):
            scale = 1 / np.sqrt(inputs * kernel * kernel)
            constants[f"w{i}_{kernel}"] = (scale * rng.normal(size=(outputs, inputs, kernel, kernel))).astype(
                np.float32
            )
            window = f"strides = [{stride}, {stride}], pads = {[kernel // 2] * 4}"
            lines.append(f"[conv{i}_{kernel}] c{i}_{kernel} = Conv <{window}> ({x}, w{i}_{kernel})")
            branch = norm(f"c{i}_{kernel}", f"bn{i}_{kernel}", outputs)
            if total:
                lines.append(f"[add{i}] s{i} = Add ({total}, {branch})")
            total = f"s{i}" if total else branch
        if inputs == outputs and stride == 1:
            lines.append(f"[skip{i}] t{i} = Add ({norm(x, f'bn{i}_0', inputs)}, {total})")
            total = f"t{i}"
        lines.append(f"[relu{i}] x{i} = Relu ({total})")
        x = f"x{i}"
    lines.append(f"[pool] y = GlobalAveragePool ({x})")
    body = "\n".join(lines)
    graph = f"repvgg (float[N,3,32,32] image) => (float[N,{widths[-1]},1,1] y) {{ {body} }}"
    return build(graph, **constants), len(widths) - 1


def test_repvgg_a0_has_one_convolution_a_block() -> None:
    rng = rng_of(9)
    model, blocks = repvgg_a0(rng)
    original = reload(model)
    batchnorms = [node.name for node in model.graph if node.op_type == "BatchNormalization"]
    assert (blocks, len(batchnorms)) == (22, 61)
    records = merge_branches(model, facts(model))
    assert op_types(model) == ["Conv", "Relu"] * blocks + ["GlobalAveragePool"]
    assert sorted(name for record in records for name in record.batchnorms) == sorted(name or "" for name in batchnorms)
    assert [record.branches for record in records].count(3) == 17
    assert set(model.graph.initializers) == {f"w{i}_3{end}" for i in range(blocks) for end in ("", "_bias")}
    feeds = {"image": rng.normal(size=(1, 3, 32, 32)).astype(np.float32)}
    before, after = evaluate(original, feeds)["y"], evaluate(reload(model), feeds)["y"]
    assert np.abs(before - after).max() <= 1e-4 * np.abs(before).max()
    assert merge_branches(model, facts(model)) == ()

"""Conv and ConvTranspose under gauges at both ends: exact wherever a law allows it, no law where it would not be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from tests.training.fold.linear.judging import (
    Given,
    assert_stored_alike,
    edits_of,
    gauge,
    judge,
    kinds,
    law_of,
    rewritten,
)
from tests.training.fold.models import TEXT_TYPES, build, constant, rng_of
from training.fold.edits import SetOperand
from training.fold.laws import Free, NoShift
from training.fold.refusal import Refusal
from training.reference import evaluate

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Case:
    """y [..] = op(x): `free` says whether the input can have a shift."""

    id: str
    op: str
    x: list[int]
    w: tuple[int, ...]
    y: list[int]
    attributes: str = ""
    free: bool = True
    bias: bool = True
    opset: int = 17

    def model(self, seed: int = 0, dtype: Any = np.float64) -> ir.Model:
        rng, kind = rng_of(seed), TEXT_TYPES[np.dtype(dtype)]
        attributes = f"<{self.attributes}>" if self.attributes else ""
        constants = {"w": rng.normal(size=self.w).astype(dtype)}
        if self.bias:
            constants["b"] = rng.normal(size=self.y[1]).astype(dtype)
        return build(
            f"""m ({kind}{self.x} x) => ({kind}{self.y} y) {{
                [op] y = {self.op} {attributes} (x, w{", b" if self.bias else ""}) }}""",
            opset=self.opset,
            **constants,
        )


CASES = [
    # F1, B1: any number of spatial axes, dimensions distinct; without padding the input is free
    Case("conv1d", "Conv", [2, 3, 8], (4, 3, 3), [2, 4, 6]),
    Case("conv2d", "Conv", [2, 3, 8, 9], (4, 3, 2, 3), [2, 4, 7, 7]),
    Case("conv3d", "Conv", [1, 3, 5, 6, 7], (4, 3, 2, 3, 4), [1, 4, 4, 4, 4]),
    Case("opset 1", "Conv", [2, 3, 8], (4, 3, 3), [2, 4, 6], opset=1),
    Case("without bias", "Conv", [2, 3, 8], (4, 3, 3), [2, 4, 6], bias=False),
    Case("strided and dilated", "Conv", [2, 3, 9, 9], (4, 3, 3, 2), [2, 4, 3, 7], "strides=[2,1], dilations=[2,2]"),
    Case("all 4", "Conv", [4, 4, 4, 4], (4, 4, 1, 1), [4, 4, 4, 4]),
    Case("one channel", "Conv", [2, 1, 3], (1, 1, 1), [2, 1, 3]),
    # F2, B2
    Case("depthwise", "Conv", [2, 4, 8], (8, 1, 3), [2, 8, 6], "group=4"),
    Case("grouped", "Conv", [2, 6, 8], (4, 3, 3), [2, 4, 6], "group=2"),
    Case("grouped, all 4", "Conv", [4, 4, 4, 4], (4, 2, 1, 1), [4, 4, 4, 4], "group=2"),
    # F3: zeros around the input do not move with it
    Case("padded", "Conv", [2, 3, 8, 9], (4, 3, 3, 3), [2, 4, 8, 9], "pads=[1,1,1,1]", free=False),
    Case("padded on one axis", "Conv", [2, 3, 8, 9], (4, 3, 3, 3), [2, 4, 6, 9], "pads=[0,1,0,1]", free=False),
    Case("padded 1x1", "Conv", [2, 3, 4], (4, 3, 1), [2, 4, 6], "pads=[1,1]", free=False),
    Case("padded, depthwise", "Conv", [2, 4, 8], (4, 1, 3), [2, 4, 8], "group=4, pads=[1,1]", free=False),
    Case("same upper", "Conv", [2, 3, 8], (4, 3, 3), [2, 4, 8], 'auto_pad="SAME_UPPER"', free=False),
    Case("same lower", "Conv", [2, 3, 8], (4, 3, 3), [2, 4, 4], 'auto_pad="SAME_LOWER", strides=[2]', free=False),
    # pads that no window reads
    Case("valid, whatever the pads", "Conv", [2, 3, 8], (4, 3, 3), [2, 4, 6], 'auto_pad="VALID"'),
    Case("pad behind the last window", "Conv", [2, 3, 7], (4, 3, 3), [2, 4, 3], "pads=[0,1], strides=[2]"),
    Case("pad in the last window", "Conv", [2, 3, 8], (4, 3, 3), [2, 4, 4], "pads=[0,1], strides=[2]", free=False),
    Case("same, one tap", "Conv", [2, 3, 7], (4, 3, 1), [2, 4, 3], 'auto_pad="SAME_UPPER", strides=[3]'),
    Case("same, windows that fit", "Conv", [2, 3, 8], (4, 3, 2), [2, 4, 4], 'auto_pad="SAME_LOWER", strides=[2]'),
    # F5, B3, B4: a shift of the input would be seen through as many taps as stamps overlap
    Case("deconv 1x1", "ConvTranspose", [2, 3, 8, 5], (3, 4, 1, 1), [2, 4, 8, 5]),
    Case("deconv 1x1, all 4", "ConvTranspose", [4, 4, 4], (4, 4, 1), [4, 4, 4]),
    Case("deconv 1x1, grouped", "ConvTranspose", [2, 6, 8], (6, 4, 1), [2, 8, 8], "group=2"),
    Case("deconv 1x1 without bias", "ConvTranspose", [2, 6, 8], (6, 1, 1), [2, 6, 8], "group=6", bias=False),
    Case("deconv", "ConvTranspose", [2, 3, 4, 5], (3, 4, 2, 3), [2, 4, 5, 7], free=False),
    Case("deconv, one tap each", "ConvTranspose", [2, 3, 4], (3, 4, 2), [2, 4, 8], "strides=[2]", free=False),
    Case("deconv 1x1 with gaps", "ConvTranspose", [2, 3, 4], (3, 4, 1), [2, 4, 7], "strides=[2]", free=False),
    Case("deconv 1x1, borders cut off", "ConvTranspose", [2, 3, 4], (3, 4, 1), [2, 4, 2], "pads=[1,1]"),
    Case("deconv, all but the inside cut off", "ConvTranspose", [2, 3, 7], (3, 4, 3), [2, 4, 5], "pads=[2,2]"),
    Case("deconv 1x1, output_shape", "ConvTranspose", [2, 3, 4], (3, 4, 1), [2, 4, 4], "output_shape=[4]", free=False),
    Case(
        "deconv with output padding",
        "ConvTranspose",
        [2, 4, 4, 5],
        (4, 3, 3, 3),
        [2, 6, 9, 16],
        "group=2, strides=[2,3], output_padding=[1,2], pads=[1,0,0,1]",
        free=False,
    ),
    Case("deconv, depthwise", "ConvTranspose", [2, 3, 4], (3, 2, 3), [2, 6, 6], "group=3", free=False),
    Case("deconv3d", "ConvTranspose", [1, 2, 3, 4, 5], (2, 4, 2, 2, 2), [1, 4, 4, 5, 6], bias=False, free=False),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("ends", ["x", "y", "xy"])
def test_the_rewritten_operator_computes_the_same_between_the_gauges(case: Case, ends: str):
    for seed in range(3):
        judged = judge(case.model(seed), rng_of(seed + 10), ends)

        assert kinds(judged.x) == [Free if case.free else NoShift]
        assert kinds(judged.y) == [Free]


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_any_geometry_is_exact_under_any_gauge(op: str):
    free = 0
    for seed in range(120):
        rng = rng_of(seed)
        spatial, group = int(rng.integers(1, 3)), int(rng.choice([1, 1, 2, 3]))
        inputs, outputs = (group * int(rng.integers(1, 4)) for _ in range(2))
        most = int(rng.choice([1, 3]))
        kernel = rng.integers(1, most + 1, spatial)
        numbers = {
            "strides": rng.integers(1, most + 1, spatial),
            "dilations": rng.integers(1, 3, spatial),
            "pads": rng.choice([0, 0, 0, most - 1], 2 * spatial),
        }
        attributes = ", ".join(f"{name} = {values.tolist()}" for name, values in numbers.items())
        shape = (outputs, inputs // group) if op == "Conv" else (inputs, outputs // group)
        model = build(
            f"""m (double[2,{inputs},{",".join(str(n) for n in rng.integers(7, 9, spatial))}] x)
                => (double[2,{outputs},{",".join("AB"[:spatial])}] y)
                {{ [op] y = {op} <group = {group}, {attributes}> (x, w{", b" if seed % 2 else ""}) }}""",
            w=rng.normal(size=(*shape, *kernel)),
            b=rng.normal(size=outputs),
        )

        judged = judge(model, rng)

        free += kinds(judged.x) == [Free]
    assert 10 < free < 110


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_shift_is_quiet_where_a_bias_already_takes_one(case: Case):
    (law,) = law_of(case.model(), "y")

    assert isinstance(law, Free) and law.quiet is not case.bias


def windows_read_padding(size: int, kernel: int, stride: int, dilation: int, begin: int, end: int) -> bool | None:
    """Position by position; None where no window fits."""
    starts = range(-begin, size + end - (kernel - 1) * dilation, stride)
    taps = [start + tap * dilation for start in starts for tap in range(kernel)]
    return None if not taps else any(not 0 <= tap < size for tap in taps)


def test_the_input_is_free_exactly_where_no_window_reads_padding():
    freed = 0
    for size, kernel, stride, dilation, begin, end in product((5, 6), (1, 2, 3), (1, 2, 3), (1, 2), (0, 1), (0, 1, 2)):
        reads = windows_read_padding(size, kernel, stride, dilation, begin, end)
        if reads is None:
            continue
        attributes = f"strides=[{stride}], dilations=[{dilation}], pads=[{begin},{end}]"
        windows = (size + begin + end - (kernel - 1) * dilation - 1) // stride + 1
        model = Case("", "Conv", [1, 2, size], (3, 2, kernel), [1, 3, windows], attributes).model()

        assert kinds(law_of(model, "x")) == [NoShift if reads else Free], (size, kernel, attributes)
        freed += not reads and end > 0

    assert freed > 10


def deconvolution(size: int | str, kernel: Array, attributes: str) -> ir.Model:
    """W [2, 4, k]: for each pair of channels a multiple of `kernel`."""
    text = f"m (double[2,2,{size}] x) => (double[2,4,M] y) {{ [op] y = ConvTranspose <{attributes}> (x, w, b) }}"
    return build(text, w=rng_of(0).normal(size=(2, 4, 1)) * kernel, b=np.arange(4.0))


KERNELS = {
    "one": np.ones(1),
    "equal taps": np.ones(2),
    "four equal taps": np.ones(4),
    "linear interpolation": np.array([0.25, 0.75, 0.75, 0.25]),
    "equal sums at distance 2": np.array([0.25, 1.0, 0.75]),
    "unequal": np.array([1.0, 2.0, 4.0]),
    "taps that are zero": np.array([0.0, 1.0, 0.0]),
}


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_a_transposed_inputs_shift_is_free_exactly_where_it_is_the_same_everywhere(kernel: Array):
    """Also where the size is not known, if and only if it is so for every size."""
    found = set()
    for stride, dilation, begin, end, extra in product((1, 2, 3), (1, 2), (0, 1, 2), (0, 2), (0, 1)):
        if extra >= max(stride, dilation):
            continue
        attributes = f"strides=[{stride}], dilations=[{dilation}], pads=[{begin},{end}], output_padding=[{extra}]"
        even = []
        for size in range(1, 9):
            if (size - 1) * stride + (len(kernel) - 1) * dilation + 1 + extra - begin - end < 1:
                continue
            model = deconvolution(size, kernel, attributes)
            flat = evaluate(model, {"x": np.ones((2, 2, size)) * [[1.0], [-0.3]]})["y"]
            even.append(bool(np.ptp(flat, axis=2).max() < 1e-12))
            assert kinds(law_of(model, "x")) == [Free if even[-1] else NoShift], (size, attributes)
            if even[-1]:
                judge(model, rng_of(size))
            found.add(even[-1])
        assert kinds(law_of(deconvolution("L", kernel, attributes), "x")) == [Free if all(even) else NoShift]
    assert found == {False, True}


@pytest.mark.parametrize(
    ("attributes", "free"),
    [
        ('auto_pad = "VALID", pads = [3, 3], strides = [2]', True),
        ('auto_pad = "SAME_UPPER", strides = [2]', True),
        ('auto_pad = "SAME_LOWER", strides = [1]', False),  # one element too many is cut off, with all that it stamps
        ("output_shape = [8], strides = [2]", False),
        ("strides = [2], pads = [65, 0]", False),  # not looked at
    ],
)
def test_of_a_transposed_operators_margins_only_what_is_written_out_is_proved(attributes: str, free: bool):
    assert kinds(law_of(deconvolution(4, np.ones(2), attributes), "x")) == [Free if free else NoShift]


def test_of_a_size_that_is_not_known_padding_may_be_read():
    model = build(
        "m (double[2,3,L] x) => (double[2,4,M] y) { [op] y = Conv <pads=[0,1], strides=[2]> (x, w) }",
        w=np.ones((4, 3, 3)),
    )
    unpadded = build("m (double[2,3,L] x) => (double[2,4,M] y) { [op] y = Conv (x, w) }", w=np.ones((4, 3, 3)))

    (law,) = law_of(model, "x")

    assert isinstance(law, NoShift) and law.reason == "Conv 'op' pads 'x' with zeros"
    assert kinds(law_of(unpadded, "x")) == [Free]


def test_a_dead_output_channel_keeps_its_shift_alone():
    model = Case("", "Conv", [2, 3, 8], (4, 3, 3), [2, 4, 6]).model()
    dead = gauge((1,), np.array([1.0, 0.0, -2.0, 3.0]), np.array([0.0, 7.0, 0.0, 1.0]))

    after = rewritten(model, Given(y=dead))

    assert not constant(after, "w")[1].any() and constant(after, "b")[1] == 7.0
    assert_stored_alike(model, after, {"y": dead}, rng_of(0))


def scaled(channels: int) -> Array:
    return rng_of(5).uniform(1, 2, channels)


@pytest.mark.parametrize(
    ("gauges", "written"),
    [
        (dict, []),
        (lambda: {"y": gauge((1,), np.ones(4), 1.0)}, ["bias"]),
        (lambda: {"x": gauge((1,), np.ones(3), 1.0)}, ["bias"]),
        (lambda: {"x": gauge((1,), scaled(3))}, ["weight"]),
        (lambda: {"y": gauge((1,), scaled(4))}, ["weight", "bias"]),
        (lambda: {"x": gauge((1,), scaled(3), 1.0), "y": gauge((1,), scaled(4))}, ["weight", "bias"]),
    ],
    ids=["identity", "output shift", "input shift", "input scale", "output scale", "both"],
)
def test_only_what_changes_is_written(gauges: Callable[[], dict[str, Any]], written: list[str]):
    edits = edits_of(Case("", "Conv", [2, 3, 8], (4, 3, 3), [2, 4, 6]).model(), Given(**gauges()))

    assert not isinstance(edits, Refusal)
    assert [edit.role for edit in edits if isinstance(edit, SetOperand)] == written
    assert len(edits) == len(written)


def test_no_bias_is_made_where_it_would_be_zero():
    model = Case("", "Conv", [2, 3, 8], (4, 3, 3), [2, 4, 6], bias=False).model()

    edits = edits_of(model, Given(x=gauge((1,), scaled(3)), y=gauge((1,), scaled(4))))

    assert not isinstance(edits, Refusal) and len(edits) == 1


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32], ids=lambda t: np.dtype(t).name)
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_weights_and_bias_are_rounded_once(dtype: Any, op: str):
    case = Case("", op, [2, 4, 8], (4, 3, 1) if op == "ConvTranspose" else (6, 2, 1), [2, 6, 8], "group=2")
    rng = rng_of(3)
    gauges = {
        "x": gauge((1,), rng.uniform(0.5, 2, 4) * [1, -1, 1, -1], rng.normal(size=4)),
        "y": gauge((1,), rng.uniform(0.5, 2, 6) * [1, -1, 1, -1, 1, 1], rng.normal(size=6)),
    }

    after = rewritten(case.model(1, dtype), Given(**gauges))

    wide = case.model(1, dtype)
    for value in wide.graph.initializers.values():
        numbers = constant(wide, value.name or "").astype(np.float64)
        value.const_value = ir.tensor(numbers, name=value.name)
    exact = rewritten(wide, Given(**gauges))
    for name in "wb":
        stored, wanted = constant(after, name), constant(exact, name)
        assert stored.dtype == np.dtype(dtype)
        error = np.abs(stored.astype(np.float64) - wanted)
        up = np.nextafter(np.abs(stored), np.array(np.inf, dtype)).astype(np.float64) - np.abs(stored).astype(
            np.float64
        )
        assert (error <= up / 2 * (1 + 1e-9)).all()


@pytest.mark.parametrize(("scale", "what"), [(1e5, "weight"), (1.0, "bias")])
def test_what_leaves_the_storage_type_is_refused(scale: float, what: str):
    model = Case("", "Conv", [2, 3, 8], (4, 3, 3), [2, 4, 6]).model(0, np.float16)

    refusal = edits_of(model, Given(y=gauge((1,), np.full(4, scale), 1e6)))

    assert isinstance(refusal, Refusal)
    assert refusal.reason == f"folded {what} of Conv 'op' is not finite in float16"


def test_a_gauge_that_the_law_forbids_is_refused_by_the_rewrite_too():
    model = Case("", "Conv", [2, 3, 8], (4, 3, 3), [2, 4, 8], "pads=[1,1]").model()

    refusal = edits_of(model, Given(x=gauge((1,), np.ones(3), 1.0)))

    assert isinstance(refusal, Refusal)
    assert refusal.reason == "'x' has a shift: Conv 'op' pads 'x' with zeros"


@dataclass(frozen=True)
class Refused:
    id: str
    nodes: str
    end: str
    reason: str
    axes: tuple[int, ...] = (1,)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    inputs: str = ""


W = {"w": (4, 3, 3)}
REFUSED = [
    Refused("dynamic weight", "[op] y = Conv (x, z)", "x",
            "weight 'z' of Conv 'op' is not constant: 'z' is a graph input", inputs=", double[4,3,3] z"),
    Refused("computed weight", "[r] q = Softplus (z) [op] y = Conv (x, q)", "y",
            "weight 'q' of Conv 'op' is not constant: 'q' is computed by Softplus 'r'", inputs=", double[4,3,3] z"),
    Refused("dynamic bias", "[op] y = Conv (x, w, z)", "y",
            "bias 'z' of Conv 'op' is not constant: 'z' is a graph input", shapes=W, inputs=", double[4] z"),
    Refused("bias of wrong length", "[op] y = Conv (x, w, k)", "y",
            "bias 'k' of Conv 'op' has shape [5], expected [4]", shapes=W | {"k": (5,)}),
    Refused("weight that group does not divide", "[op] y = Conv <group = 3> (x, w)", "y",
            "weight 'w' of Conv 'op' has shape [4, 1, 3] with group=3", shapes={"w": (4, 1, 3)}),
    Refused("another number of output channels", "[op] y = Conv (x, w)", "y",
            "Conv 'op' has 5 channels, 'y' 4", shapes={"w": (5, 3, 3)}),
    Refused("another number of input channels", "[op] y = Conv (x, w)", "x",
            "Conv 'op' has 2 channels, 'x' 3", shapes={"w": (4, 2, 3)}),
    Refused("a gauge along space", "[op] y = Conv (x, w)", "x",
            "'x' is stored along axis (2,), weight 'w' of Conv 'op' acts on axis 1", (2,), W),
    Refused("a gauge along the batch", "[op] y = Conv (x, w)", "y",
            "'y' is stored along axis (0,), weight 'w' of Conv 'op' acts on axis 1", (0,), W),
    Refused("a gauge along channels and space", "[op] y = Conv (x, w)", "y",
            "'y' is stored along axis (1, 2), weight 'w' of Conv 'op' acts on axis 1", (1, 2), W),
    Refused("the weight's own place", "[op] y = Conv (x, w)", "w",
            "'w' is a constant of Conv 'op', or no data it reads", (0,), W),
    Refused("dynamic deconv weight", "[op] y = ConvTranspose (x, z)", "y",
            "weight 'z' of ConvTranspose 'op' is not constant: 'z' is a graph input", inputs=", double[3,4,3] z"),
    Refused("integer weight", "[op] y = Conv (x, i)", "y", "weight 'i' of Conv 'op' is int64, expected a float type",
            shapes={"i": (4, 3, 3)}),
]  # fmt: skip


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.id)
def test_what_is_refused_says_why(case: Refused):
    graph = f"m (double[2,3,8] x{case.inputs}) => (double[2,4,6] y) {{ {case.nodes} }}"
    constants = {name: np.ones(shape, np.int64 if name == "i" else np.float64) for name, shape in case.shapes.items()}

    assert law_of(build(graph, **constants), case.end, case.axes) == case.reason


def test_behind_a_bias_that_is_computed_the_input_can_still_be_rescaled():
    model = build(
        """m (double[2,3,8] x) => (double[2,4,6] y) {
            axes = Constant <value_ints = [0, 2]> ()
            means = ReduceMean <keepdims = 0> (x, axes) wide = MatMul (means, p) bias = Neg (wide)
            [op] y = Conv (x, w, bias) }""",
        opset=18,
        w=np.ones((4, 3, 3)),
        p=np.ones((3, 4)),
    )

    (law,) = law_of(model, "x", (1,))

    assert isinstance(law, NoShift) and law.reason.startswith("bias 'bias' of Conv 'op' is not constant")


def test_a_weight_behind_other_operators_is_replaced_by_one_constant():
    model = build(
        """m (double[2,3,8] x) => (double[2,4,6] y) {
            t = Transpose <perm = [2, 1, 0]> (w) i = Identity (t) [op] y = Conv (x, i, b) }""",
        w=rng_of(0).normal(size=(3, 3, 4)),
        b=rng_of(1).normal(size=4),
    )

    judged = judge(model, rng_of(2))

    assert [node.op_type for node in judged.model.graph] == ["Conv"]

"""Widening, row F3(d): a channel of ones holds the shift that a zero-padded convolution can take from no bias.

Every folded graph is judged by judge.py: the same function to 1e-9 of each channel's size times its condition, the same
inputs and outputs, a second fold, with widening or without, the identity.
"""

from __future__ import annotations

import multiprocessing
from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from tests.training.fold import fuzz
from tests.training.fold.judge import Judged, assert_same_function, judge
from tests.training.fold.models import affine_of, build, constant, op_types, rng_of, serialized, statistics
from tests.training.fold.rows.case import SIZES, settled
from training.fold import FoldReport, Profile, Verdict, fold

Array = NDArray[Any]
PADS = "pads = [1, 1, 1, 1]"


def between(
    body: str,
    sizes: str = "distinct",
    draw: Any = settled,
    readers: str = f"[out] y = Conv <{PADS}> (bn, w2)",
    outputs: str = "y",
    dtype: Any = np.float64,
    opset: int = 20,
    **constants: Array,
) -> ir.Model:
    """`[stem] h = Conv(x)`, `body`, which makes `v` of it, `[bn] bn = BatchNormalization(v)`, and `readers`.

    Weights to read with: w2 [O, C, 3, 3], wt [C, O, 3, 3], and of C channels each: slope [C, 1, 1], wd [C, 1, 3, 3].
    """
    n, c, o, h, w = (SIZES[sizes][key] for key in "NCOHW")
    rng = rng_of(c + h)
    shapes = {"w1": (c, o, 3, 3), "k1": (c,), "w2": (o, c, 3, 3), "wt": (c, o, 3, 3), "wd": (c, 1, 3, 3)}
    drawn = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    drawn |= {
        "slope": rng.uniform(0.2, 0.9, (c, 1, 1)),
        "two": np.array(2.0),
        "ends": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    }
    drawn |= {"up": np.array([1, 1, 2, 2], dtype=np.float32), **{f"bn_{key}": v for key, v in draw(rng, c).items()}}
    drawn |= constants
    text = f"{body} {readers}"
    used = {k: v.astype(dtype) if v.dtype == np.float64 else v for k, v in drawn.items() if k[:3] == "bn_" or k in text}
    used |= {name: drawn[name].astype(dtype) for name in ("w1", "k1")}
    kind = {"float64": "double", "float32": "float", "float16": "float16"}[np.dtype(dtype).name]
    declared = ", ".join(f"{kind}[N, M, H, W] {name}" for name in outputs.split())
    return build(
        f"""g ({kind}[{n}, {o}, {h}, {w}] x) => ({declared}) {{
            [stem] h = Conv <{PADS}> (x, w1, k1) {body}
            [bn] bn = BatchNormalization (v, bn_g, bn_b, bn_m, bn_v) {readers} }}""",
        opset=opset,
        **used,
    )


PRELU = "[act] v = PRelu (h, slope)"


def widened(model: ir.Model, profile: Profile = Profile.GENERIC) -> Judged:
    judged = judge(model, profile, widen=True)
    onnx.checker.check_model(ir.to_proto(judged.folded), full_check=True)
    return judged


def the_one(report: FoldReport) -> Any:
    (outcome,) = report.batchnorms
    return outcome


# --- what it does ----------------------------------------------------------------------------------------------------

ACTIVATIONS = {
    "Prelu, a slope a channel": PRELU,
    "PRelu, one slope": "v = PRelu (h, two)",
    "LeakyRelu": "v = LeakyRelu <alpha = 0.3> (h)",
    "Abs": "v = Abs (h)",
    "Elu": "v = Elu <alpha = 0.7> (h)",
    "Erf": "v = Erf (h)",
    "Gelu": "v = Gelu (h)",
    "Gelu by tanh": 'v = Gelu <approximate = "tanh"> (h)',
    "Gelu written out": "a = Div (h, two) b = Erf (a) c = Add (b, two) v = Mul (h, c)",
    "HardSwish": "v = HardSwish (h)",
    "Mish": "v = Mish (h)",
    "Neg, of a Sigmoid": "a = Sigmoid (h) v = Neg (a)",
    "SiLU written out": "a = Sigmoid (h) v = Mul (h, a)",
    "Softplus": "v = Softplus (h)",
    "Softsign": "v = Softsign (h)",
    "Tanh": "v = Tanh (h)",
    "a pool behind it": "a = Tanh (h) v = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a)",
    "an average behind it": f"a = Tanh (h) v = AveragePool <kernel_shape = [3, 3], {PADS}> (a)",
    "a depthwise convolution behind it": f"a = Tanh (h) b = Conv <group = $C, {PADS}> (a, wd) v = Tanh (b)",
    "a sum of two": "a = Tanh (h) b = Sigmoid (h) v = Add (a, b)",
    "a sum with itself, thrice": "a = Tanh (h) v = Sum (a, a, a)",
    "a product of two": "a = Tanh (h) b = Sigmoid (h) v = Mul (a, b)",
    "the larger of two": "a = Tanh (h) b = Sigmoid (h) v = Max (a, b)",
    "the smaller of two": "a = Tanh (h) b = Sigmoid (h) v = Min (a, b)",
    "a quotient of two": "a = Tanh (h) b = Softplus (h) v = Div (a, b)",
    "a scale a channel behind it, and a shift": "a = Tanh (h) b = Mul (a, slope) c = Add (slope, b) v = Tanh (c)",
    "bounds a channel": "a = Tanh (h) b = Max (a, slope) c = Sub (b, slope) v = Tanh (c)",
    "divided a channel": "a = Tanh (h) b = Div (a, slope) v = Tanh (b)",
    "bounds": "a = Tanh (h) b = Clip (a, low, high) v = Tanh (b)",
    "one number minus it": "a = Tanh (h) b = Sub (two, a) v = Tanh (b)",
    "one number by it": "a = Softplus (h) v = Div (two, a)",
    "Dropout, Identity": "a = Tanh (h) b = Dropout (a) v = Identity (b)",
    "margins of its own": 'a = Tanh (h) v = Pad <mode = "reflect"> (a, ends)',
    "resized": 'a = Tanh (h) v = Resize <mode = "linear"> (a, , up)',
}
BOUNDS = {"low": np.array(-0.5), "high": np.array(0.7)}


@pytest.mark.parametrize("profile", [Profile.GENERIC, Profile.ORT_CPU])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nothing_is_left_of_a_batchnorm_between(name: str, sizes: str, profile: Profile) -> None:
    """... an activation that lets no shift pass and a zero-padded convolution."""
    body = ACTIVATIONS[name].replace("$C", str(SIZES[sizes]["C"]))
    model = between(body, sizes, **BOUNDS if "Clip" in body else {})
    before = fold(model, profile)[1]

    judged = widened(model, profile)

    assert before.count(Verdict.FOLDED) == 0 and the_one(before).way_out == "--widen folds it, with one channel more"
    assert the_one(judged.report).verdict is Verdict.FOLDED and the_one(judged.report).widened
    assert "BatchNormalization" not in op_types(judged.folded)


READERS = {
    "3x3": f"y = Conv <{PADS}> (bn, w2)",
    "with a bias": f"y = Conv <{PADS}> (bn, w2, k)",
    "strided and dilated": "y = Conv <pads = [2, 2, 2, 2], strides = [2, 1], dilations = [2, 2]> (bn, w2)",
    "padded by SAME": 'y = Conv <auto_pad = "SAME_UPPER"> (bn, w2)',
    "padded on one side": "y = Conv <pads = [1, 0, 0, 0]> (bn, w2)",
    "transposed": "y = ConvTranspose (bn, wt)",
    "transposed, strided": "y = ConvTranspose <strides = [2, 2], output_padding = [1, 1]> (bn, wt)",
    "behind a Pad": "p = Pad (bn, ends) y = Conv (p, w2)",
    "behind an average that counts padding": f"""p = AveragePool <kernel_shape = [3, 3], {PADS}, count_include_pad = 1>
        (bn) y = Conv <{PADS}> (p, w2)""",
    "resized first": f"p = Resize (bn, , up) y = Conv <{PADS}> (p, w2)",
}


@pytest.mark.parametrize("draw", [settled, statistics])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", READERS)
def test_every_convolution_that_sees_padding_reads_the_ones(name: str, sizes: str, draw: Any) -> None:
    model = between("v = Tanh (h)", sizes, draw, READERS[name], k=rng_of(1).normal(size=SIZES[sizes]["O"]))

    assert widened(model).report.count(Verdict.FOLDED) == 1


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_any_number_of_spatial_axes(rank: int) -> None:
    rng, kernel, pads = rng_of(rank), (3,) * rank, f"pads = {[1] * 2 * rank}"
    shape = ",".join("5" * rank)
    model = build(
        f"""g (double[2,3,{shape}] x) => (double[2,4,{shape}] y) {{
            h = Conv (x, w1) v = Tanh (h) bn = BatchNormalization (v, g, b, m, v1) y = Conv <{pads}> (bn, w2) }}""",
        w1=rng.normal(size=(2, 3, *(1,) * rank)),
        w2=rng.normal(size=(4, 2, *kernel)),
        **{"v1" if key == "v" else key: part for key, part in settled(rng, 2).items()},
    )

    assert widened(model).report.count(Verdict.FOLDED) == 1


def test_the_formula() -> None:
    """The stem emits ones, the reader has `sum_i W[o,i] t[i]` for them, and what there was is what it is."""
    model = between(PRELU)
    stats = {key: constant(model, f"bn_{key}") for key in "gbmv"}
    scale, shift = affine_of(stats)
    w1, k1, w2 = (constant(model, name) for name in ("w1", "k1", "w2"))

    folded = widened(model, Profile.ORT_CPU).folded

    assert op_types(folded) == ["Conv", "PRelu", "Conv"]
    assert np.array_equal(constant(folded, "w1"), np.concatenate([w1, np.zeros((1, *w1.shape[1:]))]))
    assert np.array_equal(constant(folded, "k1"), [*k1, 1.0])
    assert np.array_equal(constant(folded, "slope")[:-1], constant(model, "slope"))
    assert np.allclose(constant(folded, "w2")[:, :-1], w2 * scale[:, None, None], rtol=1e-15)
    assert np.allclose(constant(folded, "w2")[:, -1], np.einsum("oihw,i->ohw", w2, shift), rtol=1e-12)


def test_what_the_add_that_is_left_held_is_worth_the_same() -> None:
    """A profile that reduces to an Add widens that; the weights were rounded for it and are not rounded again."""
    upright = {"bn_g": np.linspace(0.7, 1.3, 4)}
    model = between(PRELU, **upright, dtype=np.float32)
    reduced, report = fold(model, Profile.GENERIC)

    folded, outcome = fold(model, Profile.GENERIC, widen=True)

    assert the_one(report).verdict is Verdict.REDUCED
    assert the_one(outcome).verdict is Verdict.FOLDED
    assert np.array_equal(constant(folded, "w2")[:, :-1], constant(reduced, "w2"))


# --- who shares the ones ---------------------------------------------------------------------------------------------


def test_several_batchnorms_on_one_tensor_share_its_ones() -> None:
    more = {f"b2_{key}": part for key, part in settled(rng_of(5), 4).items()}
    model = between(
        PRELU,
        readers=f"""[out] y = Conv <{PADS}> (bn, w2)
            [bn2] bn2 = BatchNormalization (v, b2_g, b2_b, b2_m, b2_v) [out2] z = ConvTranspose <{PADS}> (bn2, wt)""",
        outputs="y z",
        **more,
    )

    judged = widened(model)

    assert [outcome.into[-1] for outcome in judged.report.batchnorms] == ["out", "out2"]
    assert constant(judged.folded, "w1").shape[0] == constant(model, "w1").shape[0] + 1
    assert constant(judged.folded, "w2").shape[1] == constant(judged.folded, "wt").shape[0] == 5


def test_who_reads_the_tensor_without_the_shift_reads_zeros_of_the_ones() -> None:
    model = between(
        PRELU,
        readers=f"[out] y = Conv <{PADS}> (bn, w2) [side] z = Conv (v, ws)",
        outputs="y z",
        ws=np.ones((2, 4, 1, 1)),
    )

    judged = widened(model)

    assert the_one(judged.report).into == ("stem", "out")
    side = next(node for node in judged.folded.graph if node.name == "side")
    assert side.inputs[1].const_value.numpy()[:, -1].tolist() == [[[0.0]], [[0.0]]]


def test_a_residual_stream_is_widened_from_end_to_end() -> None:
    """The shortcut adds the stream to what a block makes of it, so that both have the channel."""
    block = (
        f"[a] a = Conv <{PADS}> (bn, wa) [mid] b = PRelu (a, slope) [c] c = Conv <{PADS}> (b, wa) [sum] s = Add (v, c)"
    )
    more = {f"b2_{key}": part for key, part in settled(rng_of(5), 4).items()}
    model = between(
        PRELU,
        readers=f"""{block} [act2] t = PRelu (s, slope) [bn2] u = BatchNormalization (t, b2_g, b2_b, b2_m, b2_v)
            [out] y = Conv <{PADS}> (u, w2)""",
        wa=rng_of(3).normal(size=(4, 4, 3, 3)),
        **more,
    )

    judged = widened(model)

    first, second = judged.report.batchnorms
    assert (first.into, second.into) == (("stem", "a"), ("stem", "out"))
    assert next(node for node in judged.folded.graph if node.name == "c").inputs[2:] == ()  # it adds zeros to the ones


def test_a_convolution_may_read_one_region_and_make_the_next() -> None:
    more = {f"b2_{key}": part for key, part in settled(rng_of(5), 6).items()}
    model = between(
        PRELU,
        readers=f"""[mid] a = Conv <{PADS}> (bn, w2) b = Tanh (a)
            [bn2] c = BatchNormalization (b, b2_g, b2_b, b2_m, b2_v) [out] y = Conv <{PADS}> (c, w3)""",
        w3=rng_of(3).normal(size=(2, 6, 3, 3)),
        **more,
    )

    judged = widened(model, Profile.ORT_CPU)

    assert [outcome.into for outcome in judged.report.batchnorms] == [("stem", "mid"), ("mid", "out")]
    assert constant(judged.folded, "w2").shape == (7, 5, 3, 3)


def test_a_shared_weight_is_cloned_and_its_other_readers_keep_theirs() -> None:
    model = between(
        PRELU,
        readers=f"[out] y = Conv <{PADS}> (bn, w2) q = Conv (v, square) r = Tanh (q) [other] z = Conv (r, w2)",
        outputs="y z",
        square=np.ones((4, 4, 1, 1)),
    )

    judged = widened(model)

    other = next(node for node in judged.folded.graph if node.name == "other")
    assert other.inputs[1].const_value.numpy().shape == (6, 4, 3, 3)


def test_a_batchnorm_that_stays_passes_the_ones_on() -> None:
    """The first cannot go, for a Tanh reads what it makes; the second does."""
    more = {f"b2_{key}": part for key, part in settled(rng_of(5), 4).items()}
    model = between(
        PRELU,
        readers=f"""[act2] t = Tanh (bn) [bn2] u = BatchNormalization <epsilon = 0.01> (t, b2_g, b2_b, b2_m, b2_v)
            [act3] s = Tanh (u) [bn3] r = BatchNormalization (s, bn_g, bn_b, bn_m, bn_v)
            [out] y = Conv <{PADS}> (r, w2)""",
        **more,
    )

    judged = widened(model)

    assert [outcome.verdict for outcome in judged.report.batchnorms] == ["kept", "kept", "folded"]
    assert "not widened: Tanh 'act2' takes 'bn' only as it is" in judged.report.batchnorms[0].reason


def test_what_is_in_the_way_is_said_once_however_many_passes_follow() -> None:
    """The input's shift stays as an Add; then constants summed in the graph are stored, and all is looked at again."""
    more = {f"b2_{key}": part for key, part in settled(rng_of(5), 6).items()} | {"k2": rng_of(1).normal(size=4)}
    graph = build(
        f"""g (double[2, 6, 9, 9] x) => (double[2, 4, 9, 9] y) {{
            [bn] b = BatchNormalization (x, b2_g, b2_b, b2_m, b2_v) [sum] s = Add (k1, k2)
            [out] y = Conv <{PADS}> (b, w, s) }}""",
        w=rng_of(3).normal(size=(4, 6, 3, 3)),
        k1=rng_of(4).normal(size=4),
        **more,
    )
    judged = widened(graph)
    outcome = the_one(judged.report)

    assert outcome.verdict is Verdict.REDUCED and "sum" not in [node.name for node in judged.folded.graph]
    assert outcome.reason.count("not widened") == 1


def test_an_affine_that_is_no_batchnorm_goes_the_same_way() -> None:
    model = between(
        PRELU, readers=f"[layer] s = Sub (v, slope) [out] z = Conv <{PADS}> (s, w2) y = Conv (bn, w2)", outputs="y z"
    )

    judged = widened(model)

    assert [(o.name, o.verdict, o.widened) for o in judged.report.affines] == [("layer", "folded", True)]


def test_a_map_of_a_map_goes_with_it() -> None:
    """A convolution reads what the first BatchNormalization makes, and so does the second."""
    more = {f"b2_{key}": part for key, part in settled(rng_of(5), 4).items()}
    model = between(
        PRELU,
        readers=f"""[out] y = Conv <{PADS}> (bn, w2) [bn2] u = BatchNormalization (bn, b2_g, b2_b, b2_m, b2_v)
            [out2] z = ConvTranspose <{PADS}> (u, wt)""",
        outputs="y z",
        **more,
    )

    judged = widened(model, Profile.ORT_CPU)

    assert [outcome.into for outcome in judged.report.batchnorms] == [("stem", "out", "out2"), ("stem", "out2")]


SHIFTED = f"[k] s = Add (v, slope) $BEFORE t = $CALL [out] y = Conv <{PADS}> (t, w2) z = Conv (bn, w2)"


def the_shift(call: str, before: str = "") -> Any:
    body = "a = Tanh (h) v = Sigmoid (a) u = Tanh (a)"
    readers = SHIFTED.replace("$CALL", call).replace("$BEFORE", before)
    report = widened(between(body, readers=readers, outputs="y z")).report
    (shift,) = (outcome for outcome in report.affines if outcome.name == "k")
    return shift


@pytest.mark.parametrize("call", ["Add (s, u)", "Sub (u, s)", "Sub (s, u)", "Sum (u, s, s)"])
def test_a_shift_passes_a_sum(call: str) -> None:
    assert the_shift(call).verdict is Verdict.FOLDED and the_shift(call).widened


def test_a_shift_does_not_pass_a_sum_with_what_has_another_border() -> None:
    shift = the_shift("Add (p, q)", 'p = Pad (s, ends) q = Pad <mode = "edge"> (u, ends)')

    assert "not widened: Add of 't' adds tensors whose extra channels differ at the border" in shift.reason


def test_inside_a_branch_of_an_if() -> None:
    stats = settled(rng_of(2), 3)
    model = build(
        f"""g (double[1,2,5,4] x, bool c) => (double[1,2,5,4] y) {{
            y = If (c) <then_branch = t () => (double[1,2,5,4] a) {{
                h = Conv (x, w1) v = Tanh (h) [bn] b = BatchNormalization (v, g, b0, m, v0)
                [out] a = Conv <{PADS}> (b, w2) }},
            else_branch = e () => (double[1,2,5,4] d) {{ d = Relu (x) }}> }}""",
        w1=rng_of(0).normal(size=(3, 2, 1, 1)),
        w2=rng_of(1).normal(size=(2, 3, 3, 3)),
        **{{"b": "b0", "v": "v0"}.get(key, key): part for key, part in stats.items()},
    )

    folded, report = fold(model, Profile.GENERIC, widen=True)

    assert report.count(Verdict.FOLDED) == 1
    for chosen in (True, False):
        feeds = {"x": rng_of(4).normal(size=(1, 2, 5, 4)), "c": np.array(chosen)}
        from training.reference import evaluate

        assert np.allclose(evaluate(folded, feeds)["y"], evaluate(model, feeds)["y"], rtol=0, atol=1e-12)


# --- what it refuses -------------------------------------------------------------------------------------------------

READ = f"y = Conv <{PADS}> (bn, w2)"
GROUPED = "has 2 groups of several channels: none of them is the extra one"
REFUSED = {
    "a graph output": (PRELU, READ, "y v", "'v' is a graph output, whose shape stays"),
    "read as it is": (PRELU, f"{READ} z = Softmax <axis = 1> (v)", "y z", "Softmax of 'z' takes no channel more"),
    "its shape read": (PRELU, f"{READ} s = Shape (v) z = Expand (two, s)", "y z", "Shape of 's' takes no channel more"),
    "concatenated": (PRELU, f"{READ} z = Concat <axis = 1> (v, v)", "y z", "Concat of 'z' takes no channel more"),
    "a graph input": ("v = Slice (x, i0, i4, i1)", READ, "y h", "Slice of 'v' takes no channel more"),
    "read in groups": (PRELU, f"z = Conv <group = 2, {PADS}> (v, wg) {READ}", "y z", f"Conv of 'z' {GROUPED}"),
    "made in groups": (f"a = Conv <group = 2, {PADS}> (h, wg) v = Tanh (a)", READ, "y", f"Conv of 'a' {GROUPED}"),
    "the shift read channel by channel": (
        PRELU,
        f"a = Conv <group = 4, {PADS}> (bn, wd) [out] y = Conv (a, w2)",
        "y",
        "Conv of 'a' takes 'bn' only as it is",
    ),
    "a weight": (PRELU, f"{READ} z = Conv (x, v)", "y z", "weight 'v' of Conv of 'z' is not constant"),
    "a weight that is not constant": (
        "s = ReduceMax (x) w = Mul (w1, s) a = Conv (x, w) v = Tanh (a)",
        READ,
        "y",
        "weight 'w' of Conv of 'a' is not constant",
    ),
    "a picture": (
        "a = Add (h, image) v = Tanh (a)",
        READ,
        "y",
        "constant 'image' of Add of 'a' differs within a channel",
    ),
    "a partner of one channel": (
        "g = Conv (x, wone) a = Tanh (h) v = Mul (a, g)",
        READ,
        "y",
        "'g' does not have all channels of what Mul of 'v' makes",
    ),
    "nothing left in the channel": (
        "a = Tanh (h) b = Tanh (h) v = Sub (a, b)",
        READ,
        "y",
        "the extra channel that Conv of 'y' reads holds 0",
    ),
    "infinities in the margin": ("a = Tanh (h) v = Pad (a, ends, low)", READ, "y", "Pad of 'v' does not treat all"),
    "margins before an activation": (
        "a = Tanh (h) b = Pad (a, ends) v = Tanh (b)",
        READ,
        "y",
        "Tanh of 'v' reads an extra channel that is another at the border",
    ),
    "a sum of two scales": (
        "a = Tanh (h) v = Sigmoid (a)",
        f"t = Add (bn, v) [out] y = Conv <{PADS}> (t, w2)",
        "y",
        "Add of 't' adds 'bn' to others of another scale",
    ),
    "a maximum of negative scales": (
        "v = Tanh (h)",
        f"t = MaxPool <kernel_shape = [2, 2]> (bn) [out] y = Conv <{PADS}> (t, w2)",
        "y",
        "MaxPool of 't' needs a positive scale",
    ),
    "margins of a number": (
        "v = Tanh (h)",
        f"t = Pad (bn, ends, two) [out] y = Conv <{PADS}> (t, w2)",
        "y",
        "is padded with 2, expected 0 or an infinity",
    ),
    "margins of zeros under the map": (
        "a = Tanh (h) v = Pad (a, ends)",
        READ,
        "y",
        "BatchNormalization 'bn' reads an extra channel that is another at the border",
    ),
    "sizes that name the channels": (
        "a = Tanh (h) v = Resize (a, , , to)",
        READ,
        "y",
        "Resize of 'v' does not treat all",
    ),
    "a random mask": ("a = Tanh (h) v = Dropout (a, , yes)", READ, "y", "Dropout of 'v'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_its_reason(name: str) -> None:
    body, readers, outputs, reason = REFUSED[name]
    n, o, h, w = (SIZES["distinct"][key] for key in "NOHW")
    rng = rng_of(0)
    constants = {
        "wg": rng.normal(size=(4, 2, 3, 3)),
        "wone": rng.normal(size=(1, o, 3, 3))[:, :, 1:2, 1:2],
        "image": rng.normal(size=(h, w)),
        "low": np.array(-np.inf),
        "to": np.array([n, 4, 2 * h, 2 * w]),
        "yes": np.array(True),
        "i0": np.array([0]),
        "i1": np.array([1]),
        "i4": np.array([4]),
    }
    model = between(
        body, readers=readers, outputs=outputs, **{k: v for k, v in constants.items() if k in body + readers}
    )

    folded, report = fold(model, Profile.ORT_CPU, widen=True)

    outcome = the_one(report)
    assert outcome.verdict is Verdict.KEPT
    assert reason in outcome.reason.partition("; not widened: ")[2], outcome.reason
    assert serialized(folded) == serialized(model)


def test_weights_that_would_overflow_are_left_alone() -> None:
    """Half precision ends at 65504, and the ones' weight is a sum over all channels."""
    large = {"w2": np.full((6, 4, 3, 3), 3e4), "bn_b": np.full(4, 2.0), "bn_g": np.ones(4)}
    model = between(PRELU, **large, dtype=np.float16)

    folded, report = fold(model, Profile.ORT_CPU, widen=True)

    assert "not widened: widened weight of Conv 'out' is not finite in float16" in the_one(report).reason
    assert serialized(folded) == serialized(model)


# --- as an option ----------------------------------------------------------------------------------------------------


def test_off_by_default_and_offered_as_the_way_out() -> None:
    model = between(PRELU)

    folded, report = fold(model, Profile.ORT_CPU)

    assert the_one(report).way_out == "--widen folds it, with one channel more"
    assert not report.changed and serialized(folded) == serialized(model)


def test_a_folded_file_is_widened_later_and_a_widened_one_stays() -> None:
    model = between(PRELU)
    reduced, _ = fold(model, Profile.ORT_CPU)

    folded, report = fold(reduced, Profile.GENERIC, widen=True)

    assert report.changed
    assert_same_function(model, folded, seed=0)
    for widen in (True, False):
        assert not fold(folded, Profile.GENERIC, widen)[1].changed


def test_the_report_counts_it_and_names_the_convolutions() -> None:
    report = widened(between(PRELU)).report

    assert report.as_dict()["batchnorms"] == [
        {"name": "bn", "verdict": "folded", "into": ["stem", "out"], "reason": "", "widened": True}
    ]
    assert (report.summary()["folded"], report.summary()["widened"]) == (1, 1)
    assert "1 folded (1 widened)" in report.as_text()


def test_random_graphs() -> None:
    """Every other one is of convolutions, made for this (random_convolutions.py)."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(2, fuzz.prepare) as pool:
        results = pool.map(partial(fuzz.run, widen=True), [range(first, first + 75) for first in range(0, 300, 75)])

    assert [failure for failures, _ in results for failure in failures] == []
    assert sum((counts for _, counts in results), Counter[str]())["widened"] >= 100

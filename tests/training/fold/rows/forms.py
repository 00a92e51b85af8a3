"""Section 1.5: forms of BatchNormalization, and of the file that it is in."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from tests.training.fold.rows.case import Case, hostile, pruned, settled, upright

_WIDE = "m ($T[$N,$C,$H,$W] x) => ($T y)"
_CONV = "[conv] h = Conv <pads=[1,1,1,1]> (x, w, k)"
_BN = "[bn] y = BatchNormalization (h, g, b, m, v)"
_DRAW = {"w": "O C 3 3", "k": "O"}
_BEHIND = f"{_WIDE} {{ {_CONV} {_BN} }}"


def _behind(code: str, name: str, text: str = _BEHIND, **more: object) -> Case:
    """A convolution and a map of O channels, folded unless `more` says otherwise."""
    expected = {"bn": {"": "O"}, "draw": _DRAW, "folded": 1, "ops": "Conv"} | more
    return Case(code, name, text, **expected)  # type: ignore[arg-type]


def _kept(code: str, name: str, text: str = _BEHIND, *reasons: str, **more: object) -> Case:
    """Refused, for these reasons."""
    return _behind(code, name, text, **({"folded": 0, "kept": 1, "ops": None, "reasons": reasons} | more))


def _decomposed(name: str, maps: str, shape: str = "O 1 1", **more: object) -> Case:
    """h goes through `maps`, with constants s and t, to y."""
    return _behind("C1", name, f"{_WIDE} {{ {_CONV} {maps} }}",
                   **({"bn": {}, "draw": _DRAW | {"s": shape, "t": shape}, "folded": 0, "affines": 2,
                       "statistics": (settled,)} | more))  # fmt: skip


C1 = (
    _decomposed("Mul, Add", "p = Mul (h, s) y = Add (p, t)"),
    _decomposed("Mul, Add, constants first", "p = Mul (s, h) y = Add (t, p)", "1 O 1 1"),
    _decomposed("Sub, Div", "p = Sub (h, t) y = Div (p, s)"),
    _decomposed("one number", "p = Mul (h, s) y = Sub (p, t)", ""),
    # The second is a bias that differs along the wrong axis: W may be O, and is not the channels.
    _decomposed("along the last axis", "p = Mul (h, s) y = Add (p, t)", "W", affines=0, ops="Conv Mul Add"),
    _decomposed("before a convolution", "p = Mul (x, s) q = Add (p, t) y = Conv (q, w, k)", "C 1 1",
                ops="Conv Conv"),
    _decomposed("behind a Gemm", "q = Flatten (h) z = Gemm (q, u) p = Mul (z, s) y = Add (p, t)", "C",
                draw=_DRAW | {"u": "OHW C", "s": "C", "t": "C"}, ops="Conv Flatten Gemm"),
)  # fmt: skip
_FROZEN = """e = Add (v, eps) r = Sqrt (e) i = Reciprocal (r) s = Mul (g, i)
    n = Mul (m, s) t = Sub (b, n) s3 = Reshape (s, dims) t3 = Reshape (t, dims)"""
_DIMS = {"eps": np.array([1e-5]), "dims": np.array([1, -1, 1, 1])}
C2 = (
    _behind("C2", "FrozenBatchNorm", f"{_WIDE} {{ {_CONV} {_FROZEN} p = Mul (h, s3) y = Add (p, t3) }}", folded=0,
            affines=2, given=_DIMS, statistics=(hostile, settled, pruned)),
    _behind("C2", "FrozenBatchNorm, root of a power, division",
            f"{_WIDE} {{ {_CONV} e = Add (v, eps) r = Pow (e, half) m3 = Reshape (m, dims) r3 = Reshape (r, dims)"
            " g3 = Unsqueeze (g, a) b3 = Unsqueeze (b, a)"
            " p = Sub (h, m3) q = Div (p, r3) z = Mul (q, g3) y = Add (z, b3) }",
            folded=0, affines=4, given=_DIMS | {"half": np.array(0.5), "a": np.array([1, 2])}),
)  # fmt: skip
_PICK = " ".join(
    f"[pick{i}] c{i} = Gather <axis=1> (x, i{i}) u{i} = Unsqueeze (c{i}, one)"
    f" p{i} = Mul (u{i}, s{i}) q{i} = Add (p{i}, t{i})"
    for i in range(3)
)
_PICKED = {f"i{i}": np.array(i) for i in range(3)} | {"one": np.array([1])}
_PICKED |= {f"s{i}": np.array(0.4 + 0.1 * i) for i in range(3)} | {f"t{i}": np.array(0.1 * i - 0.05) for i in range(3)}
C3 = (
    Case("C3", "per channel", f"{_WIDE} {{ p = Sub (x, m3) q = Div (p, s3) [conv] y = Conv (q, w, k) }}", {},
         _DRAW | {"m3": "1 C 1 1", "s3": "1 C 1 1"}, affines=2, ops="Conv"),
    Case("C3", "one number", f"{_WIDE} {{ p = Mul (x, s3) q = Sub (p, m3) [conv] y = Conv (q, w, k) }}", {},
         _DRAW | {"m3": "", "s3": ""}, affines=2, ops="Conv"),
    # The scale goes into the weights, the mean stays in front of the padding.
    Case("C3", "per channel, padded",
         f"{_WIDE} {{ p = Sub (x, m3) q = Div (p, s3) [conv] y = Conv <pads=[1,1,1,1]> (q, w, k) }}", {},
         _DRAW | {"m3": "1 C 1 1", "s3": "1 C 1 1"}, affines=1, ops="Sub Conv"),
    Case("C3", "inception: picked, mapped and joined",
         f"m ($T[$N,3,$H,$W] x) => ($T y) {{ {_PICK} z = Concat <axis=1> (q0, q1, q2) [conv] y = Conv (z, w, k)"
         " }", {}, {"w": "O 3 3 3", "k": "O"}, _PICKED, affines=6,
         ops="Gather Unsqueeze Gather Unsqueeze Gather Unsqueeze Concat Conv"),
)  # fmt: skip
C4 = (
    _kept("C4", "training_mode", f"{_WIDE} {{ {_CONV} {_BN.replace(' (', ' <training_mode=1> (')} }}",
          "training_mode=1: it normalises with the statistics of each batch"),
    _kept("C4", "running statistics are used", "m ($T[$N,$C,$H,$W] x) => ($T y, $T[$O] r) {"
          f" {_CONV} [bn] y, r, q = BatchNormalization <training_mode=1> (h, g, b, m, v) }}", "training_mode=1"),
    _kept("C4", "extra outputs, opset 9", f"{_WIDE} {{ {_CONV}"
          " [bn] y, m1, v1, m2, v2 = BatchNormalization (h, g, b, m, v) }", "5 outputs", opset=9),
    _kept("C4", "extra outputs, opset 7", f"{_WIDE} {{ {_CONV}"
          " [bn] y, m1, v1, m2, v2 = BatchNormalization (h, g, b, m, v) }", "5 outputs", opset=7),
)  # fmt: skip
C5 = (
    _kept("C5", "statistics of the batch", f"{_WIDE} {{ {_CONV} [mean] mu = ReduceMean <axes=[0,2,3], keepdims=0> (h)"
          " mu4 = Reshape (mu, dims) d = Sub (h, mu4) e = Mul (d, d)"
          " [var] va = ReduceMean <axes=[0,2,3], keepdims=0> (e)"
          " [bn] y = BatchNormalization (h, g, b, mu, va) }", "input_mean is not constant", opset=13,
          given={"dims": _DIMS["dims"]}),
)  # fmt: skip
C6 = (
    _behind("C6", "InstanceNormalization alone: nothing to do",
            f"{_WIDE} {{ {_CONV} y = InstanceNormalization (h, g, b) }}", folded=0, ops="Conv InstanceNormalization"),
    _behind("C6", "LayerNormalization alone: nothing to do",
            f"{_WIDE} {{ {_CONV} y = LayerNormalization (h, n) }}", folded=0, ops="Conv LayerNormalization",
            draw=_DRAW | {"n": "W"}),
    # It subtracts every channel's own mean, a shift with it, and adds an epsilon to what a scale would move.
    _behind("C6", "InstanceNormalization behind a map",
            f"{_WIDE} {{ [bn] n = BatchNormalization (x, g, b, m, v) [norm] y = InstanceNormalization (n, g, b) }}",
            bn={"": "C"}, folded=0, reduced=1, ops="Mul InstanceNormalization",
            reasons=("'x' is a graph input", "InstanceNormalization 'norm' divides 'n' by its own deviation")),
    _kept("C6", "GroupNormalization behind a map",
          f"{_WIDE} {{ [bn] n = BatchNormalization (x, g, b, m, v)"
          " [norm] y = GroupNormalization <num_groups=2> (n, g, b) }",
          "'x' is a graph input", "GroupNormalization 'norm' divides 'n' by its own deviation", bn={"": "C"}, opset=21),
    # Behind one the map goes into its scale and B.
    *(
        _behind("C6", f"{op.split()[0]} in front of a map",
                f"{_WIDE} {{ h = {op} (x, s, t) [bn] y = BatchNormalization (h, g, b, m, v) }}", bn={"": "C"},
                draw={"s": shape, "t": shape}, ops=op.split()[0], opset=21)
        for op, shape in (("InstanceNormalization", "C"), ("GroupNormalization <num_groups=2>", "C"),
                          ("LayerNormalization <axis=1>", "C H W"))
    ),
    # An exported InstanceNorm can be a BatchNormalization with statistics of the batch, by way of a Reshape.
    _kept("C6", "written as BatchNormalization",
          f"{_WIDE} {{ {_CONV} r = Reshape (h, dims) [bn] n = BatchNormalization <training_mode=1> (r, g, b, m, v)"
          " y = Reshape (n, back) }", "training_mode=1", bn={"": "16"}, sizes=("coincident",),
          given={"dims": np.array([1, -1, 4, 4]), "back": np.array([4, 4, 4, 4])}),
)  # fmt: skip
_HALF = {"dtype": np.float16, "statistics": (settled, upright)}
_BRAIN = {"dtype": ml_dtypes.bfloat16, "statistics": (settled, upright)}
C7 = (
    _behind("C7", "Conv", **_HALF),
    _behind("C7", "forward", f"{_WIDE} {{ [bn] h = BatchNormalization (x, g, b, m, v) y = Conv (h, w, k) }}",
            bn={"": "C"}, **_HALF),
    # A scale of 6e4 / sqrt(1e-7 + 1e-5) is beyond half precision, of which the largest number is 65504.
    _kept("C7", "a weight that would overflow", _BEHIND, "not finite in float16",
          given={"v": np.full(4, 1e-7, np.float16), "g": np.full(4, 6e4, np.float16)}, dtype=np.float16,
          statistics=(settled,), sizes=("coincident",)),
)  # fmt: skip
C8 = (
    _behind("C8", "Conv", opset=22, ir_version=10, **_BRAIN),
    _behind("C8", "Gemm", "m ($T[$N,$C] x) => ($T y) { h = Gemm (x, w, k)" + f" {_BN} }}", ops="Gemm",
            draw={"w": "C O", "k": "O"}, **_BRAIN),
)  # fmt: skip


def _mixed(name: str, dtype: Any, affine: Any, statistics: Any) -> Case:
    """BatchNormalization-15: types of X, of scale and B, of the statistics."""
    types = {"g": affine, "b": affine, "m": statistics, "v": statistics}
    return _behind("C9", name, dtype=dtype, types=types, statistics=(settled,))


C9 = (
    _mixed("half, float, float", np.float16, np.float32, np.float32),
    _mixed("half, half, float", np.float16, np.float16, np.float32),
    _mixed("bfloat16, float, double", ml_dtypes.bfloat16, np.float32, np.float64),
    _mixed("float, double, half", np.float32, np.float64, np.float16),
)
C10 = (
    _behind("C10", "double", statistics=(hostile, pruned, settled)),
    _behind("C10", "float", dtype=np.float32, statistics=(hostile, pruned, settled)),
)
_CONSTANTS = """g = Constant <value = double[4] {1.0, -1.1, 0.9, -1.3}> ()
    b = Constant <value = double[4] {0, 1, 2, 3}> ()
    m = Constant <value_floats = [0.5, 0.25, -0.5, 2.0]> () v = Constant <value_floats = [1.0, 0.5, 2.0, 4.0]> ()"""
C11 = (
    _behind("C11", "parameters", f"{_WIDE} {{ {_CONSTANTS} {_CONV} {_BN} }}", bn={},
            draw={"w": "4 C 3 3", "k": "4"}, statistics=(settled,)),
    _behind("C11", "parameters and weight", f"{_WIDE} {{ {_CONSTANTS}"
            " w = Constant <value = double[4,1,1,1] {1, 2, 3, 4}> () k = Identity (b)"
            f" {_CONV.replace('<', '<group=4, ')} {_BN} }}", bn={}, draw={}, statistics=(settled,)),
)  # fmt: skip
C12 = (
    _behind("C12", "Identity, Cast, Transpose", f"{_WIDE} {{ w1 = Cast <to=11> (w0) w2 = Identity (w1)"
            f" w = Transpose <perm=[3,2,0,1]> (w2) {_CONV} {_BN} }}", draw={"w0": "3 3 C O", "k": "O"},
            types={"w0": np.float32}, statistics=(hostile, settled)),
    _behind("C12", "Reshape, Unsqueeze, Expand", f"{_WIDE} {{ k1 = Reshape (k0, all) k = Squeeze (k1, zero)"
            f" v1 = Expand (one, shape) {_CONV} [bn] y = BatchNormalization (h, g, b, m, v1) }}",
            draw={"w": "4 C 3 3", "k0": "4"}, bn={"": "4"},
            given={"all": np.array([1, -1]), "zero": np.array([0]), "one": np.ones(1), "shape": np.array([4])}),
    _behind("C12", "Transpose before MatMul", "m ($T[$N,$C] x) => ($T y) { w = Transpose (w0) h = MatMul (x, w)"
            f" {_BN} }}", draw={"w0": "O C"}, ops="Gemm", statistics=(hostile, settled)),
)  # fmt: skip
_INTEGERS = np.arange(-108, 108).reshape(6, 4, 3, 3).astype(np.int8)
_QUANTISED = f"{_WIDE} {{ [dq] w = DequantizeLinear <axis=0> (q, s, z) {_CONV} {_BN} }}"
_STEPS = {"s": np.linspace(0.01, 0.06, 6), "z": np.zeros(6, np.int8), "k": np.arange(6.0)}
_ONE_STEP = _STEPS | {"s": np.array(0.02), "z": np.array(3, np.int8)}
_INTEGER: dict[str, Any] = {"draw": {}, "opset": 21, "sizes": ("distinct",), "ops": "DequantizeLinear Conv"}
_LOWEST = np.where(_INTEGERS == -108, -128, _INTEGERS).astype(np.int8)
_NO_NEGATIVE = "an integer of weight 'w' of Conv 'conv' has no negative"
C13 = (
    _behind("C13", "a scale an output channel", _QUANTISED, given=_STEPS | {"q": _INTEGERS},
            **(_INTEGER | {"statistics": (hostile, pruned, settled)})),
    _behind("C13", "a zero point", _QUANTISED, given=_STEPS | {"q": _INTEGERS // 2, "z": np.full(6, 3, np.int8)},
            **(_INTEGER | {"statistics": (settled,)})),
    # -128 becomes no 128 in int8.
    _kept("C13", "an integer without negative", _QUANTISED, _NO_NEGATIVE, given=_STEPS | {"q": _LOWEST},
          **(_INTEGER | {"statistics": (settled,), "folded": 0, "kept": 0, "reduced": 1, "ops": None})),
    _behind("C13", "an integer without negative, positive scales", _QUANTISED, given=_STEPS | {"q": _LOWEST},
            **(_INTEGER | {"statistics": (upright,)})),
    # It becomes a scale an output channel.
    _behind("C13", "one scale for all", _QUANTISED.replace("<axis=0>", ""), given=_ONE_STEP | {"q": _INTEGERS},
            **(_INTEGER | {"statistics": (hostile, pruned, settled)})),
    _behind("C13", "one scale for all, no zero point", _QUANTISED.replace("<axis=0>", "").replace(", z)", ")"),
            given={name: _ONE_STEP[name] for name in "sk"} | {"q": _INTEGERS}, **_INTEGER),
    # DequantizeLinear has one scale for all in this opset: the bias takes the shift, a Mul is left.
    _kept("C13", "one scale for all, opset 12", _QUANTISED.replace("<axis=0>", ""), "is quantised with one scale",
          given=_ONE_STEP | {"q": _INTEGERS}, kept=0, reduced=1,
          **(_INTEGER | {"opset": 12, "ops": "DequantizeLinear Conv Mul", "statistics": (settled,)})),
    # A scale of the input would have to go into each integer. The bias takes the shift.
    _kept("C13", "forward", f"{_WIDE} {{ [dq] w = DequantizeLinear <axis=0> (q, s)"
          " [bn] h = BatchNormalization (x, g, b, m, v) [conv] y = Conv (h, w, k) }", "is quantised",
          given={name: _STEPS[name] for name in "sk"} | {"q": _INTEGERS}, bn={"": "C"}, kept=0, reduced=1,
          **(_INTEGER | {"ops": "DequantizeLinear Mul Conv", "statistics": (settled,)})),
    _kept("C13", "quantised activations", f"{_WIDE} {{ {_CONV} [q] i = QuantizeLinear (h, s, z)"
          " [dq] p = DequantizeLinear (i, s, z) [bn] y = BatchNormalization (p, g, b, m, v) }", "DequantizeLinear 'dq'",
          given={"s": np.array(0.05), "z": np.array(0, np.int8)}, opset=21),
)  # fmt: skip
C14 = (_behind("C14", "written to a file beside its weights, see test_external_data"),)
_LEGACY = "[bn] y = BatchNormalization <is_test=1> (h, g, b, m, v)"
_FIRST = "[bn] y = BatchNormalization <is_test=1, consumed_inputs=[0,0,0,1,1]> (h, g, b, m, v)"
C15 = (
    _behind("C15", "opset 1", f"{_WIDE} {{ {_CONV} {_FIRST} }}", opset=1, statistics=(hostile, settled)),
    *(_behind("C15", f"opset {opset}", f"{_WIDE} {{ {_CONV} {_LEGACY} }}", opset=opset) for opset in (5, 6)),
    *(
        _kept("C15", f"is_test is 0 where it is absent, opset {opset}", _BEHIND, f"is_test=0 (opset {opset})",
              opset=opset)
        for opset in (5, 6)
    ),
    # The shift that padding holds becomes an Add in the fashion of its opset, with `axis` and `broadcast`.
    _behind("C15", "opset 6, what is left is an Add", f"{_WIDE} {{ [bn] h = BatchNormalization <is_test=1> (x, g, b, m,"
            f" v) {_CONV.replace('h =', 'y =').replace('(x', '(h')} }}", bn={"": "C"}, folded=0, reduced=1,
            ops="Add Conv", opset=6, reasons=("pads 'h' with zeros",)),
    _behind("C15", "opset 6, Gemm", f"m ($T[$N,$C] x) => ($T y) {{ h = Gemm <broadcast=1> (x, w, k) {_LEGACY} }}",
            draw={"w": "C O", "k": "O"}, ops="Gemm", opset=6),
    _behind("C15", "opset 6, Mul and Add", f"{_WIDE} {{ {_CONV} p = Mul <axis=1, broadcast=1> (h, s)"
            " y = Add <axis=1, broadcast=1> (p, t) }", bn={}, draw=_DRAW | {"s": "O", "t": "O"}, folded=0, affines=2,
            opset=6, statistics=(settled,)),
)  # fmt: skip
_SPATIAL = f"{_WIDE} {{ {_CONV} [bn] y = BatchNormalization <spatial=0> (h, g, b, m, v) }}"
C16 = tuple(
    _kept("C16", f"opset {opset}", _SPATIAL, "spatial=0: its scale differs within a channel", opset=opset,
          bn={}, statistics=(settled,), sizes=("coincident",),
          given={n: np.linspace(1, 2, 64).reshape(4, 4, 4) for n in "gbmv"})
    for opset in (7, 8)
)  # fmt: skip
C17 = tuple(_behind("C17", f"opset {opset}", opset=opset) for opset in (7, 8, 9, 11, 13, 14, 15, 18, 22))
_BODY = "h = Conv <pads=[1,1,1,1]> (x, w, k) [bn] t = BatchNormalization (h, g, b, m, v)"
C18 = (
    Case("C18", "both branches of an If, one map each",
         """m (double[$N,$C,$H,$W] x, bool c) => (double y) {
            y = If (c) <
                then_branch = yes () => (double[$N,$O,$H,$W] t) { [conv1] h = Conv <pads=[1,1,1,1]> (x, w, k)
                    [bn1] t = BatchNormalization (h, g1, b1, m1, v1) },
                else_branch = no () => (double[$N,$O,$H,$W] e) { [conv2] l = Conv <pads=[1,1,1,1]> (x, w, k)
                    [bn2] e = BatchNormalization (l, g2, b2, m2, v2) }> }""",
         {"1": "O", "2": "O"}, _DRAW, folded=2, ops="If", statistics=(hostile, settled)),
    # What a branch reads of the graph around it stays as it is.
    Case("C18", "a convolution outside, its map inside",
         f"""m (double[$N,$C,$H,$W] x, bool c) => (double y) {{ {_CONV}
            y = If (c) <
                then_branch = yes () => (double[$N,$O,$H,$W] t) {{ [bn] t = BatchNormalization (h, g, b, m, v) }},
                else_branch = no () => (double[$N,$O,$H,$W] e) {{ e = Neg (h) }}> }}""",
         {"": "O"}, _DRAW, kept=1),
    Case("C18", "Loop",
         """m (double[$N,$C,$H,$W] x, double[$N,$C,$H,$W] z) => (double y) {
            n = Constant <value = int64 {3}> () yes = Constant <value = bool {1}> ()
            y = Loop (n, yes, z) <body = turn (int64 i, bool go, double[$N,$C,$H,$W] state) =>
                (bool on, double[$N,$C,$H,$W] next) {
                    on = Identity (go) [conv] h = Conv <pads=[1,1,1,1]> (x, w, k)
                    [bn] n2 = BatchNormalization (h, g, b, m, v) next = Add (state, n2) }> }""",
         {"": "C"}, {"w": "C C 3 3", "k": "C"}, folded=1, ops="Constant Constant Loop"),
    Case("C18", "Scan",
         """m (double[$N,$C,$H] x, double[$C,$D] z) => (double last, double y) {
            last, y = Scan <num_scan_inputs = 1, body = step (double[$C,$D] state, double[$C,$H] one) =>
                (double[$C,$D] next, double[$C,$O] out) {
                    next = Neg (state) h = Gemm (one, w, k) out = BatchNormalization (h, g, b, m, v) }> (z, x) }""",
         {"": "O"}, {"w": "H O", "k": "O"}, folded=1, ops="Scan", statistics=(hostile, settled)),
)  # fmt: skip
_FUNCTION = """<domain: "own", opset_import: ["" : 17]>
block (x, w, k, g, b, m, v) => (y) {
    [conv] h = Conv (x, w, k) [bn] n = BatchNormalization (h, g, b, m, v) y = Relu (n) }"""
_ALONE = """<domain: "own", opset_import: ["" : 17]>
norm (x, g, b, m, v) => (y) { [bn] y = BatchNormalization <epsilon=0.1> (x, g, b, m, v) }"""
C19 = (
    Case("C19", "a block, called twice", "m (double[$N,$C,$H,$W] x) => (double y) {"
         " h = own.block (x, w1, k, g1, b1, m1, v1) y = own.block (h, w2, k, g2, b2, m2, v2) }",
         {"1": "O", "2": "O"}, {"w1": "O C 3 3", "w2": "O O 1 1", "k": "O"}, folded=2, functions=_FUNCTION,
         ops="Conv Relu Conv Relu"),
    Case("C19", "the map alone", f"{_WIDE} {{ {_CONV} y = own.norm (h, g, b, m, v) }}", {"": "O"}, _DRAW, folded=1,
         functions=_ALONE, ops="Conv", statistics=(hostile, settled)),
    # Of another version of ONNX's operators than the model: not inlined.
    Case("C19", "of another opset", f"{_WIDE} {{ {_CONV} y = own.norm (h, g, b, m, v) }}", {"": "O"}, _DRAW, kept=1,
         functions=_ALONE.replace(": 17", ": 16"), reasons=("inside local function 'norm'",)),
)  # fmt: skip
_FED = "m ($T[$N,$C,$H,$W] x, %s) => ($T y)"
_ALL_FED = _FED % "$T[$O,$C,3,3] w, $T[$O] k, $T[$O] g, $T[$O] b, $T[$O] m, $T[$O] v"
C20 = (
    _kept("C20", "IR 3, where all of them are inputs", f"{_ALL_FED} {{ {_CONV} {_BN} }}", "'g'", ir_version=3, opset=8),
    _kept("C20", "a parameter", f"{_FED % '$T[$O] v'} {{ {_CONV} {_BN} }}", "'v'"),
    _kept("C20", "the weight", f"{_FED % '$T[$O,$C,3,3] w'} {{ {_CONV} {_BN} }}", "'w'"),
    _kept("C20", "the bias", f"{_FED % '$T[$O] k'} {{ {_CONV} {_BN} }}", "'k'"),
)  # fmt: skip

CASES: tuple[Case, ...] = (
    *C1, *C2, *C3, *C4, *C5, *C6, *C7, *C8, *C9, *C10, *C11, *C12, *C13, *C14, *C15, *C16, *C17, *C18, *C19, *C20,
)  # fmt: skip

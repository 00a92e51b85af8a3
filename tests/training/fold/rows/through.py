"""Section 1.4: through pools, activations, sums, concatenations, moves, gates, and parallel branches."""

from __future__ import annotations

import numpy as np

from tests.training.fold.rows.case import Case, alive, hostile, pruned, settled, upright

_WIDE = "m (double[$N,$C,$H,$W] x) => (double y)"
_CONV = "[conv] c = Conv <pads=[1,1,1,1]> (x, w, k)"
_DRAW = {"w": "O C 3 3", "k": "O"}
_OUT = "[bn] y = BatchNormalization (h, g, b, m, v)"
_IN = "[bn] h = BatchNormalization (x, g, b, m, v)"


def _back(code: str, name: str, middle: str, **more: object) -> Case:
    """conv -> middle (c to h) -> bn, a graph output: folded into the conv unless `more` says otherwise."""
    draw = _DRAW | dict(more.pop("draw", {}))  # type: ignore[call-overload]
    expected = {"bn": {"": "O"}, "folded": 1} | more
    return Case(code, name, f"{_WIDE} {{ {_CONV} {middle} {_OUT} }}", draw=draw, **expected)  # type: ignore[arg-type]


def _forth(code: str, name: str, middle: str, **more: object) -> Case:
    """bn of the graph input -> middle (h to p) -> conv without padding."""
    draw = {"u": "O C 1 1"} | dict(more.pop("draw", {}))  # type: ignore[call-overload]
    expected = {"bn": {"": "C"}, "folded": 1} | more
    text = f"{_WIDE} {{ {_IN} {middle} [conv] y = Conv (p, u) }}"
    return Case(code, name, text, draw=draw, **expected)  # type: ignore[arg-type]


_COUNTED = "AveragePool <kernel_shape=[2,2], pads=[1,1,1,1], count_include_pad=1>"
_MAX = "MaxPool <kernel_shape=[2,2], strides=[1,1], pads=[1,0,1,0]>"
_NEGATIVE = "which a negative scale makes a minimum"
T1 = (
    _back("T1", "AveragePool", "[p] h = AveragePool <kernel_shape=[2,2]> (c)", ops="Conv AveragePool"),
    _back("T1", "padding that is not counted", "[p] h = AveragePool <kernel_shape=[2,2], pads=[1,1,1,1]> (c)"),
    _back("T1", "partial windows", "[p] h = AveragePool <kernel_shape=[3,3], strides=[2,2], ceil_mode=1> (c)"),
    _back("T1", "padding that is counted", f"[p] h = {_COUNTED} (c)", folded=0, reduced=1,
          reasons=("AveragePool 'p' counts padding as elements",), ops="Conv AveragePool Add"),
    _back("T1", "GlobalAveragePool", "[p] h = GlobalAveragePool (c)"),
    _back("T1", "ReduceMean", "[p] h = ReduceMean <axes=[2,3]> (c)", opset=13),
    _back("T1", "ReduceSum, which counts the shift", "[p] h = ReduceSum <keepdims=0> (c, i)",
          given={"i": np.array([2, 3])}, statistics=(settled,)),
    _forth("T1", "AveragePool, forward", "p = AveragePool <kernel_shape=[2,2], pads=[1,1,1,1]> (h)"),
    _forth("T1", "padding that is counted, forward", f"[p] p = {_COUNTED} (h)", folded=0, reduced=1,
           reasons=("'x' is a graph input", "counts padding as elements")),
    _forth("T1", "ReduceMean, forward", "p = ReduceMean <axes=[-1,-2]> (h)", opset=13),
)  # fmt: skip
T2 = (
    _back("T2", "MaxPool", f"[p] h = {_MAX} (c)", statistics=(upright,), ops="Conv MaxPool"),
    _back("T2", "GlobalMaxPool", "[p] h = GlobalMaxPool (c)", statistics=(upright,)),
    _back("T2", "ReduceMax", "[p] h = ReduceMax <axes=[2,3], keepdims=1> (c)", statistics=(upright,)),
    # The shift passes; the scale would turn the maximum of a channel into a minimum.
    _back("T2", "MaxPool, negative scales", f"[p] h = {_MAX} (c)", folded=0, reduced=1, reasons=(_NEGATIVE,),
          ops="Conv MaxPool Mul", statistics=(settled, alive),
          allowed="folded: a pool of the upright channels beside a negated pool of the negated others; to split the "
          "tensor, pool twice and join it again costs more than the Mul that is left"),
    _forth("T2", "MaxPool, forward", f"p = {_MAX} (h)", statistics=(upright,)),
    # The magnitude goes on to the convolution, the sign alone would be a Mul as well.
    _forth("T2", "MaxPool, forward, negative scales", f"[p] p = {_MAX} (h)", folded=0, reduced=1,
           reasons=(_NEGATIVE,), ops="Mul MaxPool Conv", statistics=(settled,)),
)  # fmt: skip
_PASSES = "lets no shift and no negative scale pass"


def _scale_only(code: str, op: str, **more: object) -> Case:
    """A function with f(s x) = s f(x) for s > 0: the shift stays behind it."""
    return _back(code, op.split()[0], f"[a] h = {op}", statistics=(upright,), **({
        "folded": 0, "reduced": 1, "reasons": (_PASSES,), "ops": f"Conv {op.split()[0]} Add"} | more))  # fmt: skip


_PADDED = "[next] y = Conv <pads=[1,1,1,1]> (q, u)"
_MIDDLE = "[bn] q = BatchNormalization (h, g, b, m, v)"
T3 = (
    _scale_only("T3", "LeakyRelu <alpha=0.1> (c)"),
    _back("T3", "LeakyRelu, negative scales", "[a] h = LeakyRelu (c)", folded=0, kept=1, reasons=(_PASSES,),
          statistics=(settled,)),
    # ReLU takes any affine map as a clamp (T4).
    _back("T3", "Relu", "[a] h = Relu (c)", clamped=1, ops="Conv Max", statistics=(upright,)),
    # Behind the map any sign is welcome: a convolution takes it. The shift is what padding holds.
    Case("T3", "LeakyRelu, then the map, then a padded convolution",
         f"{_WIDE} {{ {_CONV} [a] h = LeakyRelu (c) {_MIDDLE} {_PADDED} }}", {"": "O"}, _DRAW | {"u": "C O 3 3"},
         reduced=1, reasons=(_PASSES, "pads 'q' with zeros"), ops="Conv LeakyRelu Add Conv"),
    Case("T3", "LeakyRelu, then the map, then a convolution without padding",
         f"{_WIDE} {{ {_CONV} [a] h = LeakyRelu (c) {_MIDDLE} [next] y = Conv (q, u) }}", {"": "O"},
         _DRAW | {"u": "C O 1 1"}, folded=1, ops="Conv LeakyRelu Conv"),
    # Between the map of a graph input and padding: opencv's mistake was to move the shift too.
    _forth("T3", "the map, then LeakyRelu", "[a] p = LeakyRelu (h)", folded=0, reduced=1,
           reasons=("'x' is a graph input", _PASSES), ops="Add LeakyRelu Conv", statistics=(upright,)),
)  # fmt: skip
T4 = (
    _scale_only("T4", "PRelu (c, n)", draw={"n": "O 1 1"}),
    _scale_only("T4", "Abs (c)"),
    _back("T4", "Clip", "[a] h = Clip (c, lo, hi)", clamped=1, ops="Conv Max Min", statistics=(settled, alive),
          given={"lo": np.array(0.0), "hi": np.array(6.0)}),
    _back("T4", "Clip, with attributes", "[a] h = Clip <min=0.0, max=6.0> (c)", clamped=1, ops="Conv Max Min",
          opset=10, statistics=(settled,)),
    _forth("T4", "Clip, forward", "[a] p = Clip (h, lo, hi)", clamped=1, ops="Max Min Conv",
           statistics=(settled, alive), given={"lo": np.array(-1.0), "hi": np.array(1.0)}),
    _forth("T4", "Max and Min, forward", "n = Max (h, lo) p = Min (hi, n)", clamped=1, ops="Max Min Max Min Conv",
           statistics=(settled,), given={"lo": np.array(-1.0), "hi": np.array(1.0)}),
    _back("T4", "HardSigmoid is no clamp", "[a] h = HardSigmoid (c)", folded=0, kept=1, reasons=("HardSigmoid 'a'",)),
    # Bounds at run time cannot move.
    Case("T4", "Clip between tensors", "m (double[$N,$C,$H,$W] x, double hi) => (double y) {"
         f" {_CONV} [a] h = Clip (c, lo, hi) {_OUT} }}", {"": "O"}, _DRAW, {"lo": np.array(0.0)}, kept=1,
         reasons=("a bound of Clip 'a'",)),
)  # fmt: skip
_RELU = "[a] p = Relu (h)"
_STREAM = f"""{_WIDE} {{
    [stem] s0 = Conv (x, w0, k0)
    [bn1] b1o = BatchNormalization (s0, g1, b1, m1, v1) r1 = Relu (b1o) [conv1] f1 = Conv <pads=[1,1,1,1]> (r1, w1, k1)
    s1 = Add (s0, f1)
    [bn2] b2o = BatchNormalization (s1, g2, b2, m2, v2) r2 = Relu (b2o) [conv2] y = Conv (r2, w2, k2) }}"""
_STREAM_DRAW = {"w0": "O C 1 1", "k0": "O", "w1": "O O 3 3", "k1": "O", "w2": "C O 1 1", "k2": "C"}
T5 = (
    _forth("T5", "1x1", _RELU, clamped=1, ops="Max Min Conv", statistics=(settled, alive)),
    _forth("T5", "1x1, positive scales", _RELU, clamped=1, ops="Max Conv", statistics=(upright,)),
    # A dead channel is the constant relu(t), which the bias holds (as in F1).
    _forth("T5", "1x1, some channels are zero", _RELU, clamped=1, ops="Max Min Conv", statistics=(pruned,)),
    # The shift of a graph input cannot go backward: an Add in front, and clamps at 0.
    Case("T5", "padded", f"{_WIDE} {{ {_IN} {_RELU} {_PADDED.replace('q', 'p')} }}", {"": "C"}, {"u": "O C 3 3"},
         reduced=1, reasons=("'x' is a graph input", "pads 'p' with zeros"), statistics=(settled,)),
    # The stream is stored as s x + t; both maps have the same signs, so that each ReLU stays one.
    Case("T5", "in a residual stream", _STREAM, {"1": "O", "2": "O"}, _STREAM_DRAW, folded=2,
         ops="Conv Relu Conv Add Relu Conv", statistics=(settled, upright)),
    # relu(s x + t) = s min(x + t/s, 0) for s < 0, in the stream that the other map wants upright.
    Case("T5", "in a residual stream, opposite signs", _STREAM.replace("g1,", "n1,").replace("[bn1]",
         "n1 = Neg (g1) [bn1]"), {"1": "O", "2": "O"}, _STREAM_DRAW, folded=2, clamped=1,
         ops="Conv Relu Conv Add Min Conv", statistics=(upright,)),
    Case("T5", "T5': conv, ReLU, the map, a padded convolution",
         f"{_WIDE} {{ {_CONV} [a] h = Relu (c) {_MIDDLE} {_PADDED} }}", {"": "O"}, _DRAW | {"u": "C O 3 3"},
         folded=1, clamped=1, ops="Conv Max Conv", statistics=(upright,)),
    Case("T5", "T5': of both signs",
         f"{_WIDE} {{ {_CONV} [a] h = Relu (c) {_MIDDLE} {_PADDED} }}", {"": "O"}, _DRAW | {"u": "C O 3 3"},
         folded=1, clamped=1, statistics=(settled, alive)),
)  # fmt: skip
_TWO_CONVS = "[conv1] a = Conv (x, w1, k1) [conv2] c = Conv (x, w2)"
_TWO_DRAW = {"w1": "O C 3 3", "k1": "O", "w2": "C C 3 3"}
_PIECES = "[cat] h = Concat <axis=1> (a, c)"
T6 = (
    Case("T6", "all pieces absorb", f"{_WIDE} {{ {_TWO_CONVS} {_PIECES} {_OUT} }}", {"": "CO"}, _TWO_DRAW, folded=1,
         ops="Conv Conv Concat", statistics=(hostile, settled)),
    Case("T6", "an epsilon of its own", f"{_WIDE} {{ {_TWO_CONVS} {_PIECES} "
         "[bn] y = BatchNormalization <epsilon=0.1> (h, g, b, m, v) }", {"": "CO"}, _TWO_DRAW, folded=1,
         ops="Conv Conv Concat"),
    Case("T6", "a piece is a graph input, a convolution follows",
         f"{_WIDE} {{ [conv1] a = Conv <pads=[1,1,1,1]> (x, w1, k1) [cat] h = Concat <axis=1> (a, x) {_MIDDLE}"
         " [next] y = Conv (q, u) }", {"": "CO"}, {"w1": "O C 3 3", "k1": "O", "u": "C CO 1 1"}, folded=1,
         ops="Conv Concat Conv"),
    # Of the three ways, the piece of the convolution, a map of the rest, and the whole, the whole stays.
    Case("T6", "a piece is a graph input",
         f"{_WIDE} {{ [conv1] a = Conv <pads=[1,1,1,1]> (x, w1, k1) [cat] h = Concat <axis=1> (a, x) {_OUT} }}",
         {"": "CO"}, {"w1": "O C 3 3", "k1": "O"}, kept=1, reasons=("'x' is a graph input", "'y' is a graph output"),
         allowed="a map of the C channels of x alone, which is never dearer; but it would stand in front of the "
         "Concat, and what is left of a map is left in its place"),
    # Channels that a Pad adds are pieces of zeros: what the map makes of them is a shift, which they cannot hold.
    _back("T6", "channels of zeros, a graph output", "[pad] h = Pad (c, i)", bn={"": "8"}, sizes=("coincident",),
          given={"i": np.array([0, 1, 0, 0, 0, 3, 0, 0])}, folded=0, reduced=1, reasons=("Pad 'pad' pads with zeros",),
          ops="Conv Pad Add", statistics=(settled,)),
    Case("T6", "channels of zeros, a convolution follows",
         f"{_WIDE} {{ [tanh] t = Tanh (x) [pad] h = Pad (t, i) {_MIDDLE} [next] y = Conv (q, u) }}", {"": "8"},
         {"u": "C 8 1 1"}, {"i": np.array([0, 1, 0, 0, 0, 3, 0, 0])}, folded=1, ops="Tanh Pad Conv",
         statistics=(hostile, settled)),
    # The shift of the stream's added channels comes from what is added to it.
    Case("T6", "a shortcut that channels of zeros widen",
         f"{_WIDE} {{ [stem] s = Conv (x, w0, k0) [bn1] p = BatchNormalization (s, g1, b1, m1, v1) r = Relu (p)"
         " [conv] c = Conv <pads=[1,1,1,1]> (r, w1) [pad] a = Pad (s, i) h = Add (c, a)"
         " [bn2] q = BatchNormalization (h, g2, b2, m2, v2) [next] y = Conv <pads=[1,1,1,1]> (q, u) }",
         {"1": "C", "2": "CC"}, {"w0": "C C 1 1", "k0": "C", "w1": "CC C 3 3", "u": "O CC 3 3"},
         {"i": np.array([0, 1, 0, 0, 0, 3, 0, 0])}, folded=2, ops="Conv Relu Conv Pad Add Conv", statistics=(settled,)),
    # DenseNet: every map reads all that was made so far, and each has a scale of its own for it.
    Case("T6", "two maps of the same pieces",
         f"{_WIDE} {{ [conv1] a = Conv (x, w1, k1) [bn1] p = BatchNormalization (a, g1, b1, m1, v1) r = Relu (p)"
         " [conv2] c = Conv <pads=[1,1,1,1]> (r, w2) [cat] h = Concat <axis=1> (a, c)"
         " [bn2] q = BatchNormalization (h, g2, b2, m2, v2) n = Relu (q) [next] y = Conv (n, u) }",
         {"1": "O", "2": "CO"}, {"w1": "O C 3 3", "k1": "O", "w2": "C O 3 3", "u": "C CO 1 1"}, folded=2, clamped=1,
         ops="Conv Relu Conv Concat Max Min Conv", statistics=(settled,)),
)  # fmt: skip
_SUM = f"""m (double[$N,$C,$H,$W] x, double[$N,$C,$H,$W] z) => (double y) {{
    [conv1] a = Conv (x, w1, k1) [conv2] c = Conv (z, w2) [sum] h = OP (a, c) {_OUT} }}"""
_SUM_DRAW = {"w1": "O C 3 3", "k1": "O", "w2": "O C 3 3"}
T7 = (
    *(
        Case("T7", op, _SUM.replace("OP", op), {"": "O"}, _SUM_DRAW, folded=1, ops=f"Conv Conv {op}",
             statistics=(settled,))
        for op in ("Add", "Sub", "Sum")
    ),
    # A sum of tensors that are far from zero, and near it together, would lose digits.
    Case("T7", "ill-conditioned", _SUM.replace("OP", "Add"), {"": "O"}, _SUM_DRAW, {"b": np.full(4, 40.0)}, kept=1,
         reasons=("ill-conditioned: 'h' would be stored",), statistics=(upright,), sizes=("coincident",)),
    # y = s (a + x) + t = s (a + t/s + x): the scale stays, as x does.
    Case("T7", "a summand is a graph input",
         f"{_WIDE} {{ [conv1] a = Conv <group=2, pads=[1,1,1,1]> (x, w1, k1) n = Relu (a) [conv2] c = Conv (n, w2)"
         f" [sum] h = Add (c, x) {_OUT} }}", {"": "C"}, {"w1": "O c 3 3", "k1": "O", "w2": "C O 1 1"}, reduced=1,
         reasons=("'x' is a graph input", "'y' is a graph output"), ops="Conv Relu Conv Add Mul",
         statistics=(settled,)),
    Case("T7", "a summand is one row for all",
         "m (double[$N,$C,$H,$W] x, double[$N,$C,1,1] z) => (double y) { [conv1] a = Conv (x, w1, k1)"
         f" [conv2] c = Conv (z, w2) [sum] h = Add (a, c) {_OUT} }}", {"": "O"},
         {"w1": "O C 3 3", "k1": "O", "w2": "O C 1 1"}, folded=1, ops="Conv Conv Add",
         statistics=(settled,)),
)  # fmt: skip
_CHAIN = "[bn1] q = BatchNormalization (h, g1, b1, m1, v1) "
_CHAIN += "[bn2] y = BatchNormalization <epsilon=0.1> (q, g2, b2, m2, v2)"
T8 = (
    Case("T8", "behind a convolution", f"{_WIDE} {{ [conv] h = Conv (x, w, k) {_CHAIN} }}", {"1": "O", "2": "O"}, _DRAW,
         folded=2, ops="Conv", statistics=(hostile, settled)),
    Case("T8", "between an input and an output", f"{_WIDE.replace(' x)', ' h)')} {{ {_CHAIN} }}",
         {"1": "C", "2": "C"}, folded=1, kept=1, reasons=("'h' is a graph input; 'y' is a graph output",),
         ops="BatchNormalization"),
)  # fmt: skip
_SHUFFLE = "r1 = Reshape (c, i) r2 = Transpose <perm=[0,2,1,3,4]> (r1) h = Reshape (r2, j)"
T9 = (
    _back("T9", "Transpose there and back", "t = Transpose <perm=[0,2,3,1]> (c) h = Transpose <perm=[0,3,1,2]> (t)"),
    _back("T9", "Unsqueeze and Squeeze", "t = Unsqueeze (c, i) u = Squeeze (t, i) h = Unsqueeze (u, j)",
          given={"i": np.array([2]), "j": np.array([4])}),
    _back("T9", "Flatten behind the channels", "t = Flatten <axis=2> (c) f = Reshape (t, i) h = Transpose "
          "<perm=[2,1,0]> (f)", given={"i": np.array([0, -1, 1])}, folded=0, kept=1, bn={"": "HW"},
          reasons=("Conv 'conv'",), sizes=("distinct",)),
    # Equal sizes do not make the axis of the map that of the channels.
    _back("T9", "Transpose that puts another axis there", "[t] h = Transpose <perm=[0,2,1,3]> (c)", bn={"": "H"},
          folded=0, kept=1, reasons=("Conv 'conv'",)),
    Case("T9", "rows and columns of a Linear", "m (double[$N,$H,$C] x) => (double y) { [op] p = MatMul (x, w)"
         " [bias] f = Add (p, k) r = Reshape (f, i) [bn] n = BatchNormalization (r, g, b, m, v) y = Reshape (n, j) }",
         {"": "O"}, {"w": "C O", "k": "O"}, {"i": np.array([-1, 4]), "j": np.array([4, 4, 4])}, folded=1,
         ops="MatMul Add Reshape Reshape", sizes=("coincident",)),
    _forth("T9", "there and back, forward", "t = Transpose <perm=[0,2,3,1]> (h) p = Transpose <perm=[0,3,1,2]> (t)"),
)  # fmt: skip
_D2S = "[move] h = DepthToSpace"
T10 = (
    Case("T10", "Split", f"{_WIDE} {{ {_CONV} [split] h, h2 = Split <axis=1> (c) {_OUT.replace(' y ', ' q ')}"
         " y = Concat <axis=1> (h2, q) }", {"": "o"}, _DRAW, opset=13, folded=1, statistics=(hostile, settled)),
    _back("T10", "Slice, reversed", "h = Slice (c, i, j, e, q)",
          given={"i": np.array([-1]), "j": np.array([-100]), "e": np.array([1]), "q": np.array([-1])},
          statistics=(hostile, settled)),
    _back("T10", "Gather, of other channels", "h = Gather <axis=1> (c, i)", given={"i": np.array([3, 0, 2, 1])},
          bn={"": "4"}, statistics=(hostile, settled)),
    # One channel of c is stored in one way, and two of the map's channels want it in two.
    _back("T10", "Gather, of one channel twice", "[move] h = Gather <axis=1> (c, i)", bn={"": "4"},
          given={"i": np.array([3, 0, 0, 1])}, folded=0, kept=1, statistics=(settled,)),
    _back("T10", "channel shuffle", _SHUFFLE, given={"i": np.array([4, 2, 2, 4, 4]), "j": np.array([4, 4, 4, 4])},
          sizes=("coincident",), statistics=(hostile, settled)),
    *(
        _forth("T10", f"DepthToSpace {mode}, forward", f"[move] p = DepthToSpace <blocksize=2, mode=\"{mode}\"> (h)",
               draw={"u": "O 1 1 1"}, bn={"": "C"}, folded=0, kept=1, reasons=("'x' is a graph input",))
        for mode in ("DCR", "CRD")
    ),
    *(
        Case("T10", f"DepthToSpace {mode}", f"{_WIDE} {{ [conv] c = Conv (x, w, k) [move] h = DepthToSpace"
             f" <blocksize=2, mode=\"{mode}\"> (c) {_OUT} }}", {"": "C"}, {"w": "C4 C 3 3", "k": "C4"}, folded=1,
             ops="Conv DepthToSpace", statistics=(hostile, settled))
        for mode in ("DCR", "CRD")
    ),
    Case("T10", "SpaceToDepth", "m (double[$N,$C,4,8] x) => (double y) { [bn] h = BatchNormalization (x, g, b, m, v)"
         " [move] p = SpaceToDepth <blocksize=2> (h) y = Conv (p, u) }", {"": "C"}, {"u": "O C4 1 1"}, folded=1,
         ops="SpaceToDepth Conv"),
)  # fmt: skip
_SCALES = {"s": np.array([1, 1, 2, 2], dtype=np.float32)}
T11 = (
    *(
        _back("T11", mode, f'h = Resize <mode="{mode}"> (c, , s)', given=_SCALES, ops="Conv Resize",
              statistics=(hostile, settled))
        for mode in ("nearest", "linear", "cubic")
    ),
    _back("T11", "cubic, exclude_outside", 'h = Resize <mode="cubic", exclude_outside=1> (c, , s)', given=_SCALES),
    # What lies outside is one number for all channels.
    _back("T11", "extrapolation", '[r] h = Resize <mode="linear", coordinate_transformation_mode="tf_crop_and_resize">'
          " (c, roi, s)", given=_SCALES | {"roi": np.array([0, 0, 0.25, 0, 1, 1, 0.75, 1.25])}, folded=0, kept=1,
          reasons=("Resize 'r'",)),
    _forth("T11", "nearest, forward", 'p = Resize <mode="nearest"> (h, , s)', given=_SCALES),
)  # fmt: skip
T12 = (
    _back("T12", "Dropout", "h = Dropout (c)", statistics=(hostile, settled)),
    _back("T12", "Identity", "i = Identity (c) h = Identity (i)", ops="Conv", statistics=(hostile, settled)),
    _back("T12", "Cast between floats", "i = Cast <to=1> (c) h = Cast <to=11> (i)", ops="Conv Cast Cast",
          statistics=(settled,)),
    _back("T12", "Cast through integers", "i = Cast <to=6> (c) [cast] h = Cast <to=11> (i)", folded=0, kept=1,
          reasons=("Cast 'cast'",)),
    _back("T12", "Dropout in training mode", "[drop] h = Dropout (c, r, t)", folded=0, kept=1,
          reasons=("Dropout 'drop'",), given={"r": np.array(0.0), "t": np.array(True)}),
)  # fmt: skip
_GATE = "p = GlobalAveragePool (c) e = Conv (p, wg) f = Sigmoid (e) [gate] h = Mul (c, f)"
T13 = (
    # c is read by the gate too, which takes the inverse in its own convolution.
    _back("T13", "SE gate", _GATE, draw={"wg": "O O 1 1"}, folded=0, reduced=1,
          reasons=("Mul 'gate' multiplies",), ops="Conv GlobalAveragePool Conv Sigmoid Mul Add"),
    Case("T13", "SE gate, then a convolution", f"{_WIDE} {{ {_CONV} {_GATE} {_MIDDLE} [next] y = Conv (q, u) }}",
         {"": "O"}, _DRAW | {"wg": "O O 1 1", "u": "C O 1 1"}, folded=1),
    _back("T13", "the square of a tensor", "[square] h = Mul (c, c)", folded=0, kept=1, reasons=("squares 'c'",)),
)  # fmt: skip
_THREE = "[conv3] a = Conv <pads=[1,1,1,1]> (x, w3) [bn3] p = BatchNormalization (a, g3, b3, m3, v3)"
_ONE = "[conv1] c = Conv (x, w1) [bn1] q = BatchNormalization (c, g1, b1, m1, v1)"
_SELF = "[bn0] r = BatchNormalization (x, g0, b0, m0, v0)"
T14 = (
    Case("T14", "RepVGG: 3x3, 1x1 and identity",
         f"{_WIDE} {{ {_THREE} {_ONE} {_SELF} s = Add (p, q) y = Add (s, r) }}", {"3": "C", "1": "C", "0": "C"},
         {"w3": "C C 3 3", "w1": "C C 1 1"}, folded=3, merged=2, ops="Conv"),
    Case("T14", "RepVGG, grouped, stride 2",
         f"{_WIDE} {{ {_THREE.replace('pads', 'group=2, strides=[2,2], pads')}"
         f" {_ONE.replace('Conv', 'Conv <group=2, strides=[2,2]>')} y = Add (p, q) }}",
         {"3": "O", "1": "O"}, {"w3": "O c 3 3", "w1": "O c 1 1"}, folded=2, merged=1, ops="Conv"),
    Case("T14", "MobileOne: depthwise",
         f"{_WIDE} {{ {_THREE.replace('pads', 'group=$C, pads')} {_ONE.replace('Conv', 'Conv <group=$C>')} {_SELF}"
         " y = Sum (p, q, r) }", {"3": "C", "1": "C", "0": "C"}, {"w3": "C 1 3 3", "w1": "C 1 1 1"}, folded=3,
         merged=2, ops="Conv"),
    Case("T14", "ACNet: 3x3, 1x3, 3x1",
         f"{_WIDE} {{ {_THREE} [cv] c = Conv <pads=[0,1,0,1]> (x, wv) [bn1] q = BatchNormalization (c, g1, b1, m1, v1)"
         " [ch] d = Conv <pads=[1,0,1,0]> (x, wh) [bn0] r = BatchNormalization (d, g0, b0, m0, v0)"
         " s = Add (p, q) y = Add (s, r) }", {"3": "O", "1": "O", "0": "O"},
         {"w3": "O C 3 3", "wv": "O C 1 3", "wh": "O C 3 1"}, folded=3, merged=2, ops="Conv"),
    Case("T14", "DBB: an average, counted", f"{_WIDE} {{ {_THREE} [conv1] c = Conv (x, w1)"
         " [bn1] q = BatchNormalization (c, g1, b1, m1, v1)"
         " [avg] d = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1> (x)"
         " [bn0] r = BatchNormalization (d, g0, b0, m0, v0) s = Add (p, q) y = Sub (s, r) }",
         {"3": "C", "1": "C", "0": "C"}, {"w3": "C C 3 3", "w1": "C C 1 1"}, folded=3, merged=2, ops="Conv"),
    # The average of real elements is no convolution at the border.
    Case("T14", "an average that counts no padding", f"{_WIDE} {{ {_THREE}"
         " [avg] d = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1]> (x)"
         " [bn0] r = BatchNormalization (d, g0, b0, m0, v0) y = Add (p, r) }", {"3": "C", "0": "C"},
         {"w3": "C C 3 3"}, folded=1, reduced=1, reasons=("'x' is a graph input",), ops="Conv AveragePool Mul Add"),
    Case("T14", "1x1, then 3x3 without padding", f"{_WIDE} {{ [conv1] c = Conv (x, w1, k1)"
         " [bn1] q = BatchNormalization (c, g1, b1, m1, v1) [conv3] a = Conv (q, w3)"
         " [bn3] y = BatchNormalization (a, g3, b3, m3, v3) }", {"1": "O", "3": "O"},
         {"w1": "O C 1 1", "k1": "O", "w3": "O O 3 3"}, folded=2, merged=1, ops="Conv"),
    # At the border the middle is 0 and not its bias: two convolutions stay, without maps.
    Case("T14", "1x1, then 3x3 with padding", f"{_WIDE} {{ [conv1] c = Conv (x, w1, k1)"
         " [bn1] q = BatchNormalization (c, g1, b1, m1, v1) [conv3] a = Conv <pads=[1,1,1,1]> (q, w3)"
         " [bn3] y = BatchNormalization (a, g3, b3, m3, v3) }", {"1": "O", "3": "O"},
         {"w1": "O C 1 1", "k1": "O", "w3": "O O 3 3"}, folded=2, ops="Conv Conv"),
)  # fmt: skip

CASES: tuple[Case, ...] = (*T1, *T2, *T3, *T4, *T5, *T6, *T7, *T8, *T9, *T10, *T11, *T12, *T13, *T14)

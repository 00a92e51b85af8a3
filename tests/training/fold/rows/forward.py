"""Section 1.3: BatchNormalization of a graph input, then a linear operator; nothing can go backward."""

from __future__ import annotations

import numpy as np

from tests.training.fold.rows.case import Case, hostile, pruned, settled

_BN = "[bn] h = BatchNormalization (x, g, b, m, v)"
_WIDE = "m (double[$N,$C,$H,$W] x) => (double y)"
_CUBE = "m (double[$N,$C,$H] x) => (double y)"
_FLAT = "m (double[$N,$C] x) => (double y)"
_PADS = "pads 'h' with zeros"


def _before(code: str, name: str, op: str, head: str = _WIDE, **more: object) -> Case:
    """`op` reads h, of C channels; the map goes into it altogether unless `more` says otherwise."""
    expected = {"bn": {"": "C"}, "folded": 1} | more
    return Case(code, name, f"{head} {{ {_BN} {op} }}", **expected)  # type: ignore[arg-type]


def _shift_stays(code: str, name: str, op: str, head: str = _WIDE, **more: object) -> Case:
    """The scale goes into `op`; the shift is left as an Add."""
    return _before(code, name, op, head, **({"folded": 0, "reduced": 1} | more))


F1 = (
    _before("F1", "strides, dilations", "[op] y = Conv <strides=[2,1], dilations=[1,2]> (h, w, k)",
            draw={"w": "O C 3 2", "k": "O"}, ops="Conv"),
    _before("F1", "without bias", "[op] y = Conv <auto_pad=\"VALID\"> (h, w)", draw={"w": "O C 3 3"}, ops="Conv"),
    _before("F1", "rank 3", "[op] y = Conv (h, w)", _CUBE, draw={"w": "O C 3"}, ops="Conv"),
    # The last window ends before the padding: ceil(H / stride) windows of one row each.
    _before("F1", "SAME_UPPER with one tap", "[op] y = Conv <auto_pad=\"SAME_UPPER\", strides=[2,2]> (h, w)",
            draw={"w": "O C 1 1"}, ops="Conv"),
)  # fmt: skip
# x is as it was: the convolution has weights of 0 for the dead channels, and their constants in its bias.
F1 += (
    _before("F1", "some channels are zero", "[op] y = Conv (h, w, k)", draw={"w": "O C 3 3", "k": "O"}, ops="Conv",
            statistics=(pruned,)),
)  # fmt: skip
F2 = (
    _before("F2", "depthwise", "[op] y = Conv <group=$C> (h, w, k)", draw={"w": "C 1 3 3", "k": "C"}, ops="Conv"),
    _before("F2", "two groups", "[op] y = Conv <group=2> (h, w, k)", draw={"w": "O c 3 3", "k": "O"}, ops="Conv"),
    _before("F2", "depthwise with a multiplier", "[op] y = Conv <group=$C> (h, w)", draw={"w": "CC 1 3 3"}, ops="Conv"),
)  # fmt: skip
F3 = (
    # Exact ways to be rid of the shift exist (a constant map, a pad per channel, one more input channel); all widen a
    # tensor or fix its size, which `generic` does not. An Add is what is left.
    _shift_stays("F3", "Conv", "[op] y = Conv <pads=[1,1,1,1]> (h, w, k)", draw={"w": "O C 3 3", "k": "O"},
                 reasons=("its shift can go neither way: 'x' is a graph input", _PADS), ops="Add Conv"),
    _shift_stays("F3", "padded on one side", "[op] y = Conv <pads=[0,0,0,1]> (h, w)", draw={"w": "O C 3 3"},
                 reasons=(_PADS,), ops="Add Conv"),
    _shift_stays("F3", "depthwise, SAME", "[op] y = Conv <auto_pad=\"SAME_LOWER\", group=$C> (h, w)",
                 draw={"w": "C 1 3 3"}, reasons=(_PADS,), ops="Add Conv"),
    # 6.3: the stream z = x + t/s holds the shifts; the biases of what is added to it pay.
    # What a channel with scale 0 puts out, 0.3, is no multiple of its input, and a bias in its place is wrong at the
    # border: neither an Add nor a Mul computes it.
    _shift_stays("F3", "Conv, some channels are zero", "[op] y = Conv <pads=[1,1,1,1]> (h, w, k)",
                 draw={"w": "O C 3 3", "k": "O"}, reduced=0, kept=1, statistics=(pruned,),
                 reasons=("its scale is 0 in channel 2: 'x' is a graph input; ", _PADS)),
    _before("F3", "Conv, some channels are zero throughout", "r = Relu (h) [op] y = Conv <pads=[1,1,1,1]> (r, w, k)",
            draw={"w": "O C 3 3", "k": "O"}, given={"m": np.zeros(4), "b": np.array([0.0, 0.0, -0.3, -0.4])},
            clamped=1, ops="Max Min Conv", statistics=(pruned,)),
    Case("F3", "the shift goes backward into a residual stream",
         """m (double[$N,$C,$H,$W] x) => (double y) {
            [stem] s0 = Conv (x, w0, k0)
            [bn1] a1 = BatchNormalization (s0, g1, b1, m1, v1) [conv1] f1 = Conv <pads=[1,1,1,1]> (a1, w1, k1)
            s1 = Add (s0, f1)
            [bn2] a2 = BatchNormalization (s1, g2, b2, m2, v2) [conv2] f2 = Conv <pads=[1,1,1,1]> (a2, w2, k2)
            s2 = Add (s1, f2) [head] y = Conv (s2, w3, k3) }""",
         {"1": "O", "2": "O"}, {"w0": "O C 1 1", "w1": "O O 3 3", "w2": "O O 3 3", "w3": "C O 1 1", "k0": "O",
          "k1": "O", "k2": "O", "k3": "C"}, folded=2, ops="Conv Conv Add Conv Add Conv", statistics=(settled,)),
)  # fmt: skip


def _margin(mode: str, opset: int = 17) -> Case:
    """Real elements fill the margins: what the convolution reads has no zeros that would not move."""
    op = f'[pad] p = Pad <mode="{mode}"> (h, i) [op] y = Conv (p, w)'
    return _before("F4", mode, op, draw={"w": "O C 3 3"}, given={"i": _PADDING}, ops="Pad Conv", opset=opset)


_PADDING = np.array([0, 0, 1, 2, 0, 0, 2, 1])
F4 = (
    _margin("reflect"),
    _margin("edge"),
    _margin("wrap", opset=19),
    _before("F4", "reflect, as an attribute", '[pad] p = Pad <mode="reflect", pads=[0,0,1,2,0,0,2,1]> (h)'
            " [op] y = Conv (p, w)", draw={"w": "O C 3 3"}, ops="Pad Conv", opset=10),
    _shift_stays("F4", "zeros", "[pad] p = Pad (h, i) [op] y = Conv (p, w)", draw={"w": "O C 3 3"},
                 given={"i": _PADDING}, reasons=("Pad 'pad' pads with zeros",), ops="Add Pad Conv"),
    # (v - t) / s is one number a channel, and Pad takes one for all: nothing passes.
    _before("F4", "another number", "[pad] p = Pad (h, i, n) [op] y = Conv (p, w)", draw={"w": "O C 3 3"},
            given={"i": _PADDING, "n": np.array(0.5)}, folded=0, kept=1, reasons=("is padded with 0.5",)),
    # Channels beside those of the map: they are stored as the number that fills them is, whatever the map does.
    *(
        _before("F4", f"channels of {n}", "[pad] p = Pad (h, i, n) [op] y = Conv (p, w)", draw={"w": "O CC 1 1"},
                given={"i": np.array([0, 1, 0, 0, 0, 3, 0, 0]), "n": np.array(n)}, ops="Pad Conv",
                statistics=(hostile, settled))
        for n in (0.0, 0.5)
    ),
    _shift_stays("F4", "channels and rows of zeros", "[pad] p = Pad (h, i) [op] y = Conv (p, w)",
                 draw={"w": "O CC 1 1"}, given={"i": np.array([0, 1, 1, 0, 0, 3, 0, 0])},
                 reasons=("Pad 'pad' pads with zeros",), ops="Add Pad Conv"),
    _before("F4", "channels and rows of a number", "[pad] p = Pad (h, i, n) [op] y = Conv (p, w)",
            draw={"w": "O CC 1 1"}, given={"i": np.array([0, 1, 1, 0, 0, 3, 0, 0]), "n": np.array(0.5)}, folded=0,
            kept=1, reasons=("is padded with 0.5",)),
    _before("F4", "channels that are cut off", "[pad] p = Pad (h, i) [op] y = Conv (p, w)", draw={"w": "O 2 1 1"},
            given={"i": np.array([0, -1, 0, 0, 0, -1, 0, 0])}, ops="Pad Conv", statistics=(hostile, settled)),
    *(
        _before("F4", f"channels that are repeated, {mode}",
                f'[pad] p = Pad <mode="{mode}"> (h, i) [op] y = Conv (p, w)',
                draw={"w": "O CC 1 1"}, given={"i": np.array([0, 2, 1, 0, 0, 2, 0, 0])}, ops="Pad Conv", opset=19,
                statistics=(hostile, settled))
        for mode in ("edge", "reflect", "wrap")
    ),
)  # fmt: skip
_EVEN = np.linspace(-1, 1, 12).reshape(4, 3, 1, 1) * np.ones((2, 2))
_RAMP = np.array([0.25, 0.75, 0.75, 0.25])  # linear interpolation to twice the size
_EVEN4 = np.linspace(-1, 1, 12).reshape(4, 3, 1, 1) * np.outer(_RAMP, _RAMP)
_UNEVEN = ("the windows of ConvTranspose 'op' overlap, or leave gaps",)
F5 = (
    _before("F5", "kernel 1", "[op] y = ConvTranspose (h, w, k)", draw={"w": "C O 1 1", "k": "O"}, ops="ConvTranspose"),
    _before("F5", "kernel 1, two groups", "[op] y = ConvTranspose <group=2> (h, w)", draw={"w": "C o 1 1"},
            ops="ConvTranspose"),
    _shift_stays("F5", "strides", "[op] y = ConvTranspose <strides=[2,2], output_padding=[1,1]> (h, w, k)",
                 draw={"w": "C O 3 3", "k": "O"}, reasons=_UNEVEN, ops="Add ConvTranspose"),
    _shift_stays("F5", "gaps between single taps", "[op] y = ConvTranspose <strides=[2,2]> (h, w)",
                 draw={"w": "C O 1 1"}, reasons=_UNEVEN, ops="Add ConvTranspose"),
    _shift_stays("F5", "two groups", "[op] y = ConvTranspose <group=2, pads=[1,1,1,1]> (h, w)",
                 draw={"w": "C o 3 3"}, reasons=_UNEVEN, ops="Add ConvTranspose"),
    # Stride 2 with kernel 2 shows each position one tap, and the taps differ.
    _shift_stays("F5", "each output sees one of four taps", "[op] y = ConvTranspose <strides=[2,2]> (h, w)",
                 draw={"w": "C O 2 2"}, reasons=_UNEVEN, ops="Add ConvTranspose"),
    _before("F5", "each output sees one of four equal taps", "[op] y = ConvTranspose <strides=[2,2]> (h, w)",
            given={"w": _EVEN}, ops="ConvTranspose"),
    _before("F5", "equal sums, and a border that is cut off", "[op] y = ConvTranspose <strides=[2,2], pads=[2,2,2,2]>"
            " (h, w)", given={"w": _EVEN4}, ops="ConvTranspose"),
    # At the border a position sees fewer of them.
    _shift_stays("F5", "equal sums but for the border", "[op] y = ConvTranspose <strides=[2,2], pads=[1,1,1,1]> (h, w)",
                 given={"w": _EVEN4}, reasons=_UNEVEN, ops="Add ConvTranspose"),
)  # fmt: skip
F6 = (
    _before("F6", "Gemm", "[op] y = Gemm <alpha=0.5, beta=2.0, transB=1> (h, w, k)", _FLAT,
            draw={"w": "O C", "k": "O"}, ops="Gemm"),
    _before("F6", "Gemm with a bias a row", "[op] y = Gemm <alpha=0.5> (h, w, k)", _FLAT,
            draw={"w": "C O", "k": "N 1"}, ops="Gemm"),
    _before("F6", "MatMul, which becomes a Gemm", "[op] y = MatMul (h, w)", _FLAT, draw={"w": "C O"}, ops="Gemm"),
    _before("F6", "MatMul and Add", "[op] p = MatMul (h, w) y = Add (p, k)", _FLAT, draw={"w": "C O", "k": "O"},
            ops="MatMul Add"),
    _before("F6", "of rank 3, behind a Transpose", "q = Transpose <perm=[0,2,1]> (h) [op] p = MatMul (q, w)"
            " y = Add (p, k)", _CUBE, draw={"w": "C O", "k": "O"}, ops="Transpose MatMul Add"),
    # The product of rank 3 holds no bias.
    _shift_stays("F6", "of rank 3, behind a Transpose, without Add", "q = Transpose <perm=[0,2,1]> (h)"
                 " [op] y = MatMul (q, w)", _CUBE, draw={"w": "C O"}, reasons=("MatMul 'op' holds no bias",)),
    # Along the rows the weight has nothing to say: the scale comes out again.
    _before("F6", "of rank 3, along the rows", "[op] p = MatMul (h, w) y = Add (p, k)", _CUBE,
            draw={"w": "H O", "k": "O"}, folded=0, kept=1, reasons=("'x' is a graph input", "'y' is a graph output")),
    # W t is one number a row.
    _before("F6", "the rows of a constant left operand", "[op] p = MatMul (w, h) y = Add (p, k)", _CUBE,
            draw={"w": "O C", "k": "O 1"}, ops="MatMul Add"),
    _before("F6", "the rows of a constant left operand, a bias of columns", "[op] p = MatMul (w, h) y = Add (k, p)",
            _CUBE, draw={"w": "O C", "k": "H"}, ops="MatMul Add"),
    _shift_stays("F6", "the rows of a constant left operand, without Add", "[op] y = MatMul (w, h)", _CUBE,
                 draw={"w": "O C"}, reasons=("MatMul 'op' holds no bias",)),
    _before("F6", "Einsum", "[op] p = Einsum <equation=\"nchw,cd->ndhw\"> (h, w) y = Add (p, k)", draw={"w": "C O",
            "k": "O 1 1"}, ops="Einsum Add"),
    _before("F6", "Einsum of the weight first, channels last",
            "[op] p = Einsum <equation=\"dc,nchw->nhwd\"> (w, h) y = Add (p, k)", draw={"w": "O C", "k": "O"},
            ops="Einsum Add"),
    _before("F6", "Einsum with an implicit result", "[op] p = Einsum <equation=\"bc,cd\"> (h, w) y = Add (k, p)", _FLAT,
            draw={"w": "C O", "k": "O"}, ops="Einsum Add"),
    _shift_stays("F6", "Einsum without Add", "[op] y = Einsum <equation=\"nchw,cd->ndhw\"> (h, w)", draw={"w": "C O"},
                 reasons=("Einsum 'op' holds no bias",), ops="Add Einsum"),
    _before("F6", "Einsum over another axis", "[op] p = Einsum <equation=\"nchw,hd->ncdw\"> (h, w) y = Add (p, k)",
            draw={"w": "H O", "k": "O 1"}, folded=0, kept=1, reasons=("'x' is a graph input", "'y' is a graph output")),
    _before("F6", "a MatMul by a matrix a channel", "[op] p = MatMul (h, w) y = Add (p, k)", draw={"w": "C W O",
            "k": "C 1 O"}, ops="MatMul Add"),
    _before("F6", "a MatMul of a matrix a channel", "[op] p = MatMul (w, h) y = Add (p, k)", draw={"w": "C O H",
            "k": "O 1"}, ops="MatMul Add"),
    _before("F6", "a Gemm's left operand", "t = Transpose (h) [op] y = Gemm <alpha=0.5> (w, t, k)", _FLAT,
            draw={"w": "O C", "k": "O 1"}, ops="Transpose Gemm"),
    _before("F6", "a MatMul's left operand, which becomes a Gemm", "t = Transpose (h) [op] y = MatMul (w, t)", _FLAT,
            draw={"w": "O C"}, ops="Transpose Gemm"),
)  # fmt: skip
F7 = (
    _before("F7", "Flatten", "q = Flatten (h) [op] y = Gemm (q, w, k)", draw={"w": "CHW O", "k": "O"},
            ops="Flatten Gemm"),
    _before("F7", "Reshape", "q = Reshape (h, i) [op] y = MatMul (q, w)", draw={"w": "CHW O"},
            given={"i": np.array([0, -1])}, ops="Reshape Gemm"),
    _before("F7", "Flatten of NHWC", "t = Transpose <perm=[0,2,3,1]> (h) q = Flatten (t) [op] y = Gemm (q, w, k)",
            draw={"w": "CHW O", "k": "O"}, ops="Transpose Flatten Gemm"),
    _before("F7", "spatial positions as rows",
            "q = Reshape (h, i) t = Transpose <perm=[0,2,1]> (q) [op] p = MatMul (t, w) y = Add (p, k)",
            draw={"w": "C O", "k": "O"}, given={"i": np.array([0, 0, -1])}, ops="Reshape Transpose MatMul Add"),
    # Batch and channels in one axis: a weight along another cannot tell the channels apart.
    _before("F7", "Flatten behind the channels", "q = Flatten <axis=2> (h) [op] y = Gemm (q, w, k)",
            draw={"w": "HW O", "k": "O"}, folded=0, kept=1, reasons=("Gemm 'op'",)),
)  # fmt: skip
_TWO = "m (double[$N,$C,$H,$W] x) => (double y, double z)"
F8 = (
    _before("F8", "three linear operators",
            "y = Conv (h, w, k) z = ConvTranspose (h, u) p = GlobalAveragePool (h) q = Flatten (p) a = Gemm (q, e)",
            "m (double[$N,$C,$H,$W] x) => (double y, double z, double a)",
            draw={"w": "O C 3 3", "k": "O", "u": "C O 1 1", "e": "C O"}, ops="Conv ConvTranspose GlobalAveragePool "
            "Flatten Gemm"),
    _shift_stays("F8", "one of them pads", "y = Conv (h, w, k) [op] z = Conv <pads=[1,1,1,1]> (h, u)", _TWO,
                 draw={"w": "O C 3 3", "k": "O", "u": "O C 3 3"}, reasons=(_PADS,), ops="Add Conv Conv"),
    _before("F8", "one of them pins", "y = Conv (h, w) [op] z = Sigmoid (h)", _TWO, draw={"w": "O C 3 3"},
            folded=0, kept=1, reasons=("'x' is a graph input", "Sigmoid 'op'")),
)  # fmt: skip


def _recurrent(op: str, gates: int, directions: int, bias: bool, extra: str = "", **more: object) -> Case:
    """x [N, C, H]: C features at H steps."""
    way = "bidirectional" if directions == 2 else "forward"
    call = f'{op} <hidden_size=2, direction="{way}"> (q, w, r, {"k" if bias else ""}, {extra})'.replace(", , )", ")")
    given = {"r": np.sin(np.arange(directions * gates * 4.0)).reshape(directions, gates * 2, 2)}
    if bias:
        given["k"] = np.cos(np.arange(directions * gates * 4.0)).reshape(directions, -1)
    name = f"{op}, {way}, {'with' if bias else 'without'} bias{', ' + extra.strip(', ') if extra else ''}"
    rows = {1: {2: "2", 4: "4"}, 3: {2: "6"}, 4: {2: "8"}}[gates][2]
    op_text = f"q = Transpose <perm=[2,0,1]> (h) [op] y = {call}"
    return _before("F9", name, op_text, _CUBE, draw={"w": f"{directions} {rows} C"}, given=given,
                   ops=f"Transpose {op}", **more)  # fmt: skip


F9 = (
    _recurrent("LSTM", 4, 2, bias=True, statistics=(settled,)),
    _recurrent("GRU", 3, 1, bias=False, statistics=(settled,)),
    _recurrent("RNN", 1, 2, bias=True),
    Case("F9", "the state, which is no input of the projection",
         "m (double[1,$C] x, double[$H,1,$D] q) => (double y) {"
         '  [bn] h = BatchNormalization (x, g, b, m, v) s = Unsqueeze (h, i)'
         '  [op] y, last = RNN <hidden_size=$C> (q, w, r, , , s) }',
         {"": "C"}, {"w": "1 C D", "r": "1 C C"}, {"i": np.array([0])}, kept=1, reasons=("'x' is a graph input",),
         statistics=(settled,)),
)  # fmt: skip

CASES: tuple[Case, ...] = (*F1, *F2, *F3, *F4, *F5, *F6, *F7, *F8, *F9)

"""Section 1.2: a linear operator, then BatchNormalization."""

from __future__ import annotations

import numpy as np

from tests.training.fold.rows.case import Case, hostile, plain, pruned, settled

_BN = "[bn] y = BatchNormalization (h, g, b, m, v)"
_WIDE = "m (double[$N,$C,$H,$W] x) => (double y)"
_FLAT = "m (double[$N,$C] x) => (double y)"


def _behind(code: str, name: str, op: str, head: str = _WIDE, ops: str | None = None, **more: object) -> Case:
    """`op` writes h; its map has O channels and goes into it altogether."""
    expected = {"bn": {"": "O"}, "folded": 1, "ops": op.split()[3] if ops is None else ops}
    expected |= {"statistics": (hostile, pruned, settled)} | more
    return Case(code, name, f"{head} {{ {op} {_BN} }}", **expected)  # type: ignore[arg-type]


B1 = (
    _behind("B1", "Conv of rank 3", "[op] h = Conv <pads=[1,1], strides=[2]> (x, w, k)",
            "m (double[$N,$C,$H] x) => (double y)", draw={"w": "O C 3", "k": "O"}),
    _behind("B1", "Conv of rank 4", "[op] h = Conv <pads=[1,0,2,1], strides=[2,1], dilations=[1,2]> (x, w, k)",
            draw={"w": "O C 3 2", "k": "O"}),
    _behind("B1", "Conv of rank 5", "[op] h = Conv <auto_pad=\"SAME_UPPER\"> (x, w, k)",
            "m (double[$N,$C,$H,$W,$D] x) => (double y)", draw={"w": "O C 3 2 2", "k": "O"}),
)  # fmt: skip
B2 = (
    _behind("B2", "depthwise", "[op] h = Conv <group=$C, pads=[1,1,1,1]> (x, w, k)",
            bn={"": "C"}, draw={"w": "C 1 3 3", "k": "C"}),
    _behind("B2", "two groups", "[op] h = Conv <group=2> (x, w, k)", draw={"w": "O c 3 3", "k": "O"}),
    _behind("B2", "depthwise with a multiplier", "[op] h = Conv <group=$C> (x, w, k)",
            bn={"": "CC"}, draw={"w": "CC 1 3 3", "k": "CC"}),
)  # fmt: skip
_STRIDED = "strides=[2,2], output_padding=[1,1], pads=[1,0,0,1]"
B3 = (
    _behind("B3", "ConvTranspose", f"[op] h = ConvTranspose <{_STRIDED}> (x, w, k)",
            draw={"w": "C O 3 3", "k": "O"}),
    _behind("B3", "ConvTranspose of rank 3", "[op] h = ConvTranspose <strides=[3]> (x, w)",
            "m (double[$N,$C,$H] x) => (double y)", draw={"w": "C O 2"}),
)  # fmt: skip
B4 = (
    _behind("B4", "two groups", f"[op] h = ConvTranspose <group=2, {_STRIDED}> (x, w, k)",
            draw={"w": "C o 3 3", "k": "O"}),
    _behind("B4", "depthwise", f"[op] h = ConvTranspose <group=$C, {_STRIDED}> (x, w)",
            bn={"": "C"}, draw={"w": "C 1 3 3"}),
    _behind("B4", "depthwise with a multiplier", f"[op] h = ConvTranspose <group=$C, {_STRIDED}> (x, w)",
            bn={"": "CC"}, draw={"w": "C 2 3 3"}),
)  # fmt: skip
_GEMM = "[op] h = Gemm <alpha=0.5, beta=2.0"
B5 = (
    *(
        _behind("B5", f"C of shape [{c}]", f"{_GEMM}> (x, w, k)", _FLAT, draw={"w": "C O", "k": c})
        for c in ("O", "1", "1 O", "N 1", "N O", "")
    ),
    _behind("B5", "without C", f"{_GEMM}> (x, w)", _FLAT, draw={"w": "C O"}),
    _behind("B5", "beta 0", "[op] h = Gemm <alpha=0.5, beta=0.0> (x, w, k)", _FLAT, draw={"w": "C O", "k": "O"}),
    _behind("B5", "both transposed", f"{_GEMM}, transA=1, transB=1> (x, w, k)", "m (double[$C,$N] x) => (double y)",
            draw={"w": "O C", "k": "O"}),
)  # fmt: skip
B6 = (
    _behind("B6", "without Add, it becomes a Gemm", "[op] h = MatMul (x, w)", _FLAT, "Gemm", draw={"w": "C O"}),
    _behind("B6", "with Add", "[op] p = MatMul (x, w) [bias] h = Add (p, k)", _FLAT, "MatMul Add",
            draw={"w": "C O", "k": "O"}),
    _behind("B6", "with Add, the bias first", "[op] p = MatMul (x, w) [bias] h = Add (k, p)", _FLAT, "MatMul Add",
            draw={"w": "C O", "k": "1 O"}),
    _behind("B6", "with one number added", "[op] p = MatMul (x, w) [bias] h = Add (p, k)", _FLAT, "MatMul Add",
            draw={"w": "C O", "k": "1"}),
)  # fmt: skip

_ROWS = "m (double[$N,$H,$C] x) => (double y)"
_LINEAR = "[op] p = MatMul (x, w) [bias] h = Add (p, k)"
_T = "Transpose <perm=[0,2,1]>"
B7 = (
    # Its scale can only cross the product to x, a graph input; its shift goes into the Add's constant, now [H,O].
    Case("B7", "along the rows", f"{_ROWS} {{ {_LINEAR} {_BN} }}", {"": "H"}, {"w": "C O", "k": "O"}, reduced=1,
         reasons=("its scale can go neither way: 'x' is a graph input; 'y' is a graph output",), ops="MatMul Add Mul"),
    # A channel that is multiplied by 0 loses what was added before: the shift would have to be added behind it.
    Case("B7", "along the rows, some channels are zero", f"{_ROWS} {{ {_LINEAR} {_BN} }}", {"": "H"},
         {"w": "C O", "k": "O"}, kept=1, reasons=("its scale can go neither way",), statistics=(pruned,)),
    # Of rank 3 there is no Gemm: a product without an Add holds no shift.
    Case("B7", "along the rows, without Add", f"{_ROWS} {{ [op] h = MatMul (x, w) {_BN} }}", {"": "H"}, {"w": "C O"},
         kept=1, reasons=("its scale can go neither way",)),
    Case("B7", "along the features, behind a Transpose",
         f"{_ROWS} {{ {_LINEAR} [t] q = {_T} (h) [bn] r = BatchNormalization (q, g, b, m, v) y = {_T} (r) }}",
         {"": "O"}, {"w": "C O", "k": "O"}, folded=1, ops="MatMul Add Transpose Transpose"),
    Case("B7", "along the rows of a constant left operand",
         f"{_ROWS} {{ [op] p = MatMul (w, x) [bias] h = Add (p, k) {_BN} }}",
         {"": "O"}, {"w": "O H", "k": "O 1"}, folded=1, ops="MatMul Add"),
    # The product of a constant left operand holds no bias: the shift is an Add.
    Case("B7", "along the rows of a constant left operand, without Add",
         f"{_ROWS} {{ [op] h = MatMul (w, x) {_BN} }}",
         {"": "O"}, {"w": "O H"}, reduced=1, reasons=("MatMul 'op' holds no bias",), ops="MatMul Add"),
    _behind("B7", "along what an Einsum makes", "[op] p = Einsum <equation=\"nchw,cd->ndhw\"> (x, w) h = Add (p, k)",
            ops="Einsum Add", draw={"w": "C O", "k": "O 1 1"}),
    _behind("B7", "along what an Einsum of many matrices makes",
            "[op] p = Einsum <equation=\"nchw,hdc->ndhw\"> (x, w) h = Add (p, k)", ops="Einsum Add",
            draw={"w": "H O C", "k": "O H 1"}),
    Case("B7", "along what an Einsum makes, without Add",
         f'{_WIDE} {{ [op] h = Einsum <equation="nchw,cd->ndhw"> (x, w) {_BN} }}', {"": "O"}, {"w": "C O"}, reduced=1,
         reasons=("Einsum 'op' holds no bias",), ops="Einsum Add"),
    Case("B7", "along what an Einsum hands on",
         f'{_WIDE} {{ q = Conv (x, u) [op] h = Einsum <equation="nchw,wd->nchd"> (q, w) {_BN} }}', {"": "O"},
         {"u": "O C 1 1", "w": "W D"}, reduced=1, reasons=("a shift along (1,) is lost",), ops="Conv Einsum Add"),
    _behind("B7", "along the matrices of a MatMul", "[op] p = MatMul (x, w) h = Add (p, k)", ops="MatMul Add",
            bn={"": "C"}, draw={"w": "C W O", "k": "C 1 1"}),
    _behind("B7", "along heads and features of a MatMul, by way of a Reshape",
            "[op] p = MatMul (x, w) t = Transpose <perm=[0,1,3,2]> (p) r = Reshape (t, i) h = Add (r, k)",
            ops="MatMul Transpose Reshape Add", bn={"": "16"}, draw={"w": "C W O", "k": "16 1"},
            given={"i": np.array([0, -1, 4])}, sizes=("coincident",)),
)  # fmt: skip
B8 = (
    _behind("B8", "Conv", "[op] h = Conv (x, w)", draw={"w": "O C 3 3"}),
    _behind("B8", "Conv whose bias has the empty name", "[op] h = Conv (x, w, )", draw={"w": "O C 3 3"}),
    _behind("B8", "ConvTranspose", "[op] h = ConvTranspose (x, w)", draw={"w": "C O 3 3"}),
    _behind("B8", "Gemm", "[op] h = Gemm (x, w)", _FLAT, draw={"w": "C O"}),
)  # fmt: skip
B9 = (
    _behind("B9", "Conv", "[op] h = Conv (x, w, k)", draw={"w": "O C 3 3", "k": "O"}, statistics=(plain,)),
    _behind("B9", "Linear", "[op] h = Gemm (x, w, k)", _FLAT, draw={"w": "C O", "k": "O"}, statistics=(plain,)),
)  # fmt: skip

_TWO = "m (double[$N,$C,$H,$W] x) => (double y, double z)"
B10 = (
    # The other reader takes the inverse, `h = (y - t) / s`.
    Case("B10", "the other reader is linear",
         f"{_TWO} {{ [op] h = Conv (x, w) {_BN} [other] z = Conv (h, u) }}",
         {"": "O"}, {"w": "O C 3 3", "u": "C O 1 1"}, folded=1, ops="Conv Conv", statistics=(settled,)),
    # There is no inverse of zero, and z reads those channels.
    Case("B10", "the other reader is linear, some channels are zero",
         f"{_TWO} {{ [op] h = Conv (x, w) {_BN} [other] z = Conv (h, u) }}",
         {"": "O"}, {"w": "O C 3 3", "u": "C O 1 1"}, kept=1, reasons=("'y' is a graph output",),
         statistics=(pruned,)),
    Case("B10", "the other reader pins",
         f"{_TWO} {{ [op] h = Conv (x, w) {_BN} [other] z = Sigmoid (h) }}",
         {"": "O"}, {"w": "O C 3 3"}, kept=1, reasons=("Sigmoid 'other'",)),
    # Backward it is refused, forward it is not.
    Case("B10", "the other reader pins, and a linear operator follows",
         f"{_TWO} {{ [op] h = Conv (x, w) [bn] q = BatchNormalization (h, g, b, m, v)"
         "  [next] y = Conv (q, u) [other] z = Sigmoid (h) }",
         {"": "O"}, {"w": "O C 3 3", "u": "C O 1 1"}, folded=1, ops="Conv Conv Sigmoid"),
)  # fmt: skip
_PAIR = """m (double[$N,$C,$H,$W] x, double[$N,$C,$H,$W] z) => (double y1, double y2) {
    h1 = Conv (x, w, k) y1 = BatchNormalization (h1, g1, b1, m1, v1)
    h2 = Conv (z, w, k) y2 = BatchNormalization (h2, g2, b2, m2, v2) }"""
B11 = (
    Case("B11", "two maps", _PAIR, {"1": "O", "2": "O"}, {"w": "O C 3 3", "k": "O"}, folded=2, ops="Conv Conv"),
    Case("B11", "the same map twice", _PAIR.replace("g2, b2, m2, v2", "g1, b1, m1, v1"), {"1": "O"},
         {"w": "O C 3 3", "k": "O"}, folded=2, ops="Conv Conv"),
    Case("B11", "one weight, two transposed readings",
         """m (double[$N,$C] x, double[$N,$C] z) => (double y1, double y2) {
            h1 = Gemm (x, w) y1 = BatchNormalization (h1, g1, b1, m1, v1)
            h2 = Gemm <transB=1> (z, w) y2 = BatchNormalization (h2, g2, b2, m2, v2) }""",
         {"1": "C", "2": "C"}, {"w": "C C"}, folded=2, ops="Gemm Gemm"),
)  # fmt: skip
B12 = (
    Case("B12", "and the map's", f"{_TWO.replace('double z', 'double h')} {{ [op] h = Conv (x, w) {_BN} }}",
         {"": "O"}, {"w": "O C 3 3"}, kept=1, reasons=("'h' is a graph output", "'y' is a graph output")),
    Case("B12", "and a linear operator follows",
         "m (double[$N,$C,$H,$W] x) => (double h, double y) {"
         "  [op] h = Conv (x, w) [bn] q = BatchNormalization (h, g, b, m, v) [next] y = Conv (q, u) }",
         {"": "O"}, {"w": "O C 3 3", "u": "C O 1 1"}, folded=1, ops="Conv Conv"),
)  # fmt: skip

CASES: tuple[Case, ...] = (*B1, *B2, *B3, *B4, *B5, *B6, *B7, *B8, *B9, *B10, *B11, *B12)

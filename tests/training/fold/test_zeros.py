"""Zeros of a size that a caller decides: found through what makes and moves them; any scale suits them, no shift."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tests.training.fold.carriers.laws_oracle import Asked, ask, assert_laws_hold, known_of, refusal
from tests.training.fold.maps import bn, numbers
from tests.training.fold.models import Array, build, op_types
from training.fold import fold
from training.fold.laws import Equal, NoShift
from training.fold.operators import RULES
from training.fold.refusal import Refusal
from training.fold.zeros import holds_zeros
from training.reference import evaluate

RNG = np.random.default_rng(0)
CONSTANTS: dict[str, Array] = {
    "zero": np.array(0.0),
    "minus": np.array([-0.0]),
    "one": np.array(1.0),
    "mixed": np.array([0.0, 1e-300]),
    "five": np.array([0, 3, 1, 4, 5]),
    "at": np.array([1]),
    "to": np.array([2]),
    "w": RNG.normal(size=(4, 3, 1, 1)),
    "wide": RNG.normal(size=(4, 5, 1, 1)),
    "padded": RNG.normal(size=(4, 3, 3, 3)),
}


def graph(nodes: str, inputs: str = "double[N,3,H,W] x", outputs: str = "double[a,b,c,d] y", **more: Array) -> ir.Model:
    """A model of these nodes and the constants that they name."""
    named = {name for name in CONSTANTS if any(f"{before}{name}{after}" in nodes for before in "( " for after in ",)")}
    constants = {name: CONSTANTS[name] for name in named} | more
    return build(f"m ({inputs}) => ({outputs}) {{ s = Shape (x) {nodes} }}", opset=18, **constants)


class TestWhatHoldsZeros:
    """The tensor z."""

    @pytest.mark.parametrize(
        "nodes",
        [
            "z = Expand (zero, s)",
            "z = Expand (minus, s)",
            "z = ConstantOfShape (s)",
            "z = ConstantOfShape <value = double[1] {0}> (s)",
            "z = ConstantOfShape <value = int64[1] {0}> (s)",
            "f = ConstantOfShape (s) z = Cast <to = 11> (f)",
            "f = ConstantOfShape (s) z = CastLike (f, x)",
            "e = Expand (zero, s) i = Identity (e) z = Reshape (i, s)",
            "e = Expand (zero, s) t = Transpose (e) u = Unsqueeze (t, at) z = Squeeze (u, at)",
            "e = Expand (zero, s) c = Slice (e, at, to, at) z = Gather <axis = 1> (c, at)",
            "e = Expand (zero, s) z = Tile (e, s)",
            "e = Expand (zero, s) f = Flatten (e) z = Concat <axis = 0> (f, f)",
            "e = Expand (zero, s) z = Concat <axis = 1> (e, zero)",
        ],
    )
    def test_what_makes_and_moves_them(self, nodes: str) -> None:
        assert is_zeros(graph(nodes))

    @pytest.mark.parametrize(
        "nodes",
        [
            "z = Expand (one, s)",
            "z = Expand (mixed, s)",
            "z = ConstantOfShape <value = double[1] {2}> (s)",
            "e = Expand (zero, s) z = Concat <axis = 1> (e, x)",
            "e = Expand (zero, s) z = Concat <axis = 1> (e, one)",
            "e = Expand (zero, s) z = Add (e, x)",
            "e = Expand (zero, s) z = Exp (e)",
            "e = Expand (zero, s) z = Mul (e, x)",  # an infinity in x makes it no number
            "e = Expand (zero, s) z = own.Identity (e)",
            "z = Identity (x)",
        ],
    )
    def test_what_does_not(self, nodes: str) -> None:
        assert not is_zeros(graph(nodes))

    def test_not_what_a_caller_may_override(self) -> None:
        model = build("m (double[N,3] x, double k) => (double y) { s = Shape (x) z = Expand (k, s) }", k=np.zeros(()))

        assert not is_zeros(model)

    @pytest.mark.parametrize("first", ["zero", "x"])
    def test_long_chains_are_walked_once(self, first: str) -> None:
        count = 3000
        chain = " ".join(f"z{i + 1} = Concat <axis = 0> (z{i}, z{i})" for i in range(count))
        model = graph(f"z0 = Expand ({first}, s) {chain}")
        known = known_of(model)

        answers = [holds_zeros(node.outputs[0], known) for node in reversed(list(model.graph)[1:])]

        assert answers == [first == "zero"] * (count + 1)


def is_zeros(model: ir.Model) -> bool:
    (value,) = [output for node in model.graph for output in node.outputs if output.name == "z"]
    return holds_zeros(value, known_of(model))


class TestLaws:
    @pytest.mark.parametrize(
        ("nodes", "op"),
        [
            ("[op] z = Expand (zero, s)", "op"),
            ("[op] z = ConstantOfShape <value = double[1] {0}> (s)", "op"),
            ("e = Expand (zero, s) [op] z = Reshape (e, s)", "op"),
        ],
    )
    def test_who_makes_them_forbids_a_shift_and_nothing_else(self, nodes: str, op: str) -> None:
        laws = ask(graph(f"{nodes} y = Identity (z)", outputs="double[N,3,H,W] y, double[N,3,H,W] z"), op, "z", (1,),
                   rules=RULES)  # fmt: skip

        assert not isinstance(laws, Refusal)
        assert [(type(law), law.index) for law in laws if isinstance(law, NoShift)] == [(NoShift, None)]
        assert len(laws) == 1

    def test_another_number_stays(self) -> None:
        model = graph("[op] z = ConstantOfShape <value = double[1] {2}> (s)", outputs="double[N,3,H,W] z")

        assert "fills 'z' with a number that is not 0" in refusal(model, "op", "z", (1,), rules=RULES)

    def test_what_zeros_are_moved_from_is_not_asked(self) -> None:
        model = graph("e = Expand (zero, s) [op] z = Transpose (e)", outputs="double[N,3,H,W] e, double[W,H,3,N] z")

        assert ask(model, "op", "e", (1,), rules=RULES) == ()

    @pytest.mark.parametrize("order", ["x, z", "z, x"])
    @pytest.mark.parametrize("start", ["x", "y"])
    def test_along_another_axis_every_entry_has_zeros_in_it(self, order: str, start: str) -> None:
        asked = joined(f"[op] y = Concat <axis = 2> ({order})", "N,3,K,W", start, (2, 3, 5, 4))

        assert asked.free("x") and (asked.scales, asked.shifts) == (3, 0) and set(asked.axes) == {"x", "y"}

    @pytest.mark.parametrize("start", ["x", "y"])
    @pytest.mark.parametrize(
        ("order", "zeros", "sizes", "free"),
        [
            ("x, z", "N,2,H,W", "N,5,H,W", [0, 1, 2]),
            ("z, x", "N,2,H,W", "N,5,H,W", [2, 3, 4]),
            ("z, x", "N,C,H,W", "N,5,H,W", [2, 3, 4]),  # as many as are left
        ],
    )
    def test_channels_of_zeros_ask_nothing_of_the_others(
        self, order: str, zeros: str, sizes: str, free: list[int], start: str
    ) -> None:
        asked = joined(f"[op] y = Concat <axis = 1> ({order})", zeros, start, (2, 2, 5, 4), sizes)

        assert asked.free("x") and asked.free("y") and (asked.scales, asked.shifts) == (5, 3)
        (tie,) = {id(law): law for law in asked.laws if isinstance(law, Equal)}.values()
        sides = {tie.a.value.name: tie.a_index, tie.b.value.name: tie.b_index}
        assert sides["y"] is not None and sides["y"].tolist() == free

    def test_the_zeros_themselves_are_not_asked_by_who_joins_or_selects_them(self) -> None:
        for op in ("Concat <axis = 1> (x, z)", "Where (c, x, z)", "Where (c, z, x)"):
            model = graph(f"z = Expand (zero, s) [op] y = {op}", "double[N,3,H,W] x, bool[W] c",
                          "double[N,M,H,W] y, double[N,3,H,W] z")  # fmt: skip

            assert ask(model, "op", "z", (1,), rules=RULES) == ()

    def test_channels_of_zeros_whose_place_is_not_known_are_refused(self) -> None:
        model = graph("z = Expand (zero, v) [op] y = Concat <axis = 1> (x, z, u, z)",
                      "double[N,3,H,W] x, double[N,2,H,W] u, int64[4] v", "double[N,M,H,W] y")  # fmt: skip

        assert "in a way that unknown sizes leave unproved" in refusal(model, "op", "u", (1,), rules=RULES)

    @pytest.mark.parametrize("zeros", ["2,3,5,4", "5,1", "1"])
    @pytest.mark.parametrize("order", ["x, z", "z, x"])
    def test_a_branch_of_zeros_takes_every_scale_whatever_its_size(self, order: str, zeros: str) -> None:
        shape = np.array([int(size) for size in zeros.split(",")])
        model = build(f"m (double[2,3,5,4] x, bool[4] c, int64[{len(shape)}] v) => (double[2,3,5,4] y) {{"
                      f" z = ConstantOfShape <value = double[1] {{0}}> (v) [op] y = Where (c, {order}) }}")  # fmt: skip

        asked = assert_laws_hold(model, "op", "x", (1,), rules=RULES, feeds={"z": np.zeros(shape)})

        assert set(asked.axes) == {"x", "y"} and (asked.scales, asked.shifts) == (3, 0)


def joined(node: str, zeros: str, start: str, shape: tuple[int, ...], sizes: str = "N,3,M,W") -> Asked:
    """`shape`: of the zeros, when it is run."""
    model = build(f"m (double[2,3,5,4] x, int64[4] v) => (double[{sizes}] y, double[{zeros}] z) {{"
                  f" z = ConstantOfShape <value = double[1] {{0}}> (v) {node} }}")  # fmt: skip
    return assert_laws_hold(model, "op", start, (1,), rules=RULES, feeds={"z": np.zeros(shape)})


N = bn("n", "t", "n")
NUMBERS = numbers("n", gamma=(1.5, -2.0, 0.5))
FIVE = numbers("n", (1.5, -2.0, 0.5, 1.0, -3.0), (0.5, -1.0, 2.0, 0.0, 1.0), (0.1, 0.2, -0.3, 0.4, 0.0))
# Frames are rows: channel 0 comes from the next one, the others from the one before, where there is one.
SHIFT = """a = Slice ({x}, one, many, two) b = Slice (a, nil, one, one) c = Slice ({x}, nil, last, two)
    d = Slice (c, one, three, one) f = Slice ({x}, nil, one, two) g = Slice (f, nil, one, one)
    h = Slice (f, one, three, one) sg = Shape (g) zg = Expand (zero, sg) sh = Shape (h) zh = Expand (zero, sh)
    i = Concat <axis = 2> (b, zg) j = Concat <axis = 2> (zh, d) {y} = Concat <axis = 1> (i, j)"""
PLACES = {
    "nil": np.array([0]), "one": np.array([1]), "two": np.array([2]), "three": np.array([3]), "last": np.array([-1]),
    "many": np.array([2**62]),
}  # fmt: skip


def counts(model: ir.Model) -> tuple[dict[str, int], ir.Model, str]:
    folded, report = fold(model, "generic")
    summary = report.summary()
    return (
        {key: summary[key] for key in ("folded", "clamped", "reduced", "kept") if summary[key]},
        folded,
        "; ".join(outcome.reason for outcome in report.batchnorms if outcome.reason),
    )


def assert_same(model: ir.Model, folded: ir.Model) -> None:
    """In float64, whatever sizes a caller decides on."""
    for batch, height, width in ((1, 2, 3), (3, 5, 1), (2, 4, 4)):
        x = {"x": np.random.default_rng(batch).normal(size=(batch, 3, height, width))}
        wanted, found = evaluate(model, x)["y"], evaluate(folded, x)["y"]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12 * np.abs(wanted).max())


class TestFolds:
    @pytest.mark.parametrize(
        ("nodes", "more", "expected", "reason"),
        [
            # Two channels of zeros, in an image as large as x's.
            ((f"t = Tanh (x) {N} e = ConstantOfShape <value = double[1] {{0}}> (s) f = Slice (e, one, three, one)"
             " q = Concat <axis = 1> (n, f) [c] y = Conv (q, wide)"), {}, {"folded": 1}, ""),
            ((f"k = Conv (x, own) e = Expand (zero, s) f = Slice (e, one, three, one) t = Concat <axis = 1> (k, f)"
             f" {N} [c] y = Conv (n, wide)"), FIVE | {"own": RNG.normal(size=(3, 3, 1, 1))}, {"folded": 1}, ""),
            # Rows of zeros: a shift would be lost on them.
            (f"t = Tanh (x) {N} e = Expand (zero, s) q = Concat <axis = 2> (n, e) [c] y = Conv (q, w)", {},
             {"reduced": 1}, "Concat of 'q' puts zeros into 'q'"),
            (f"t = Tanh (x) {N} e = Expand (zero, s) m = Greater (x, e) q = Where (m, n, e) [c] y = Conv (q, w)", {},
             {"reduced": 1}, "Where of 'q' puts zeros into 'q'"),
            (f"t = Tanh (x) {N} e = Expand (one_, s) q = Concat <axis = 2> (n, e) [c] y = Conv (q, w)",
             {"one_": np.array(1.0)}, {"kept": 1}, "Expand of 'e'"),
            # A temporal shift, along H: the shift goes back into the sum, whose other summand holds it, past a ReLU.
            ((f"k = Conv (x, own) r = Relu (k) {SHIFT.format(x='r', y='u')} l = Conv (u, own) o = Relu (l)"
             f" t = Add (r, o) {N} [c] y = Conv <pads = [1, 1, 1, 1]> (n, padded)"),
             {"own": RNG.normal(size=(3, 3, 1, 1))}, {"folded": 1, "clamped": 1}, ""),
            # Read through one: the scale passes, and the shift of channels that it moves is behind it.
            (f"k = Conv (x, own) t = Tanh (k) {N} {SHIFT.format(x='n', y='u')} [c] y = Conv (u, w)",
             {"own": RNG.normal(size=(3, 3, 1, 1))}, {"reduced": 1}, "puts zeros into"),
        ],
        ids=["channels", "channels, before the map", "rows", "selected", "rows of ones", "temporal shift",
             "temporal shift of the map"],
    )  # fmt: skip
    def test_exactly_these(self, nodes: str, more: dict[str, Array], expected: dict[str, int], reason: str) -> None:
        places = {name: array for name, array in PLACES.items() if f", {name}" in nodes}
        model = graph(nodes, **(NUMBERS | places | more))

        found, folded, why = counts(model)

        assert found == expected, why
        assert reason in why
        assert op_types(folded).count("BatchNormalization") == found.get("kept", 0)
        assert_same(model, folded)

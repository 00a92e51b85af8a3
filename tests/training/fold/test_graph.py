"""Who reads a tensor's numbers? Readers of the shape alone do not count; readers in subgraphs do."""

import pytest

from tests.training.fold.models import build
from training.fold.graph import describe, label, number_readers

IF = """o = If (c) <then_branch = then () => (float[2] t) { [inner] t = Neg (h) },
                    else_branch = other () => (float[2] e) { e = Identity (x) }>"""


def readers(nodes: str) -> list[str]:
    """Of h, by name."""
    model = build(f"m (float[2] x, bool c) => (float[2] y) {{ [op] h = Abs (x) {nodes} [bn] y = Relu (h) }}")
    return sorted(node.name for node in number_readers(model.graph[0].outputs[0]))


@pytest.mark.parametrize(
    ("nodes", "others"),
    [
        ("", []),
        ("[b] z = Neg (h)", ["b"]),
        ("[b] z = Add (h, h)", ["b", "b"]),
        (IF, ["inner"]),
        ("[b] s = CastLike (h, x)", ["b"]),
        ("[b] s = own.Shape (h)", ["b"]),
    ],
)
def test_every_use_of_the_numbers_counts(nodes, others):
    assert readers(nodes) == sorted(["bn", *others])


@pytest.mark.parametrize("node", ["s = Shape (h)", "s = Size (h)", "s = CastLike (x, h)", "s = RandomNormalLike (h)"])
def test_readers_of_shape_and_type_do_not_count(node):
    assert readers(node) == ["bn"]


def test_a_nameless_node_goes_by_its_output():
    node = build("m (float x) => (float y) { y = Relu (x) }").graph[0]

    assert describe(node) == "Relu of 'y'"
    assert label(node) == "y"

"""Linear operators with constant weights: what hides behind them can be stored under any gauge, at a change of weights.

One formula (layer.py), and for each operator where its weights are and on which conditions it holds: convolution.py,
matrices.py, products.py, recurrent.py, and norms.py for those whose output alone is linear in their weights; weights
stored as integers: quantised.py. Here are the tables. Knows no BatchNormalization: the gauges may come from anywhere.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from training.fold.edits import Edit
from training.fold.graph import is_standard
from training.fold.known import Known
from training.fold.laws import Gauges, Law, Port
from training.fold.linear.convolution import conv, conv_transpose
from training.fold.linear.layer import Layer, laws, rewrite
from training.fold.linear.matrices import gemm
from training.fold.linear.norms import normalisation
from training.fold.linear.products import bias_behind, product, product_laws, product_rewrite, unheld_shift
from training.fold.linear.recurrent import recurrent
from training.fold.refusal import Refusal

__all__ = ["REWRITES", "RULES", "bias_behind", "native_axes", "unheld_shift"]

_Read = Callable[[ir.Node, Known], Layer | Refusal]
_Rule = Callable[[ir.Node, Port, Known], tuple[Law, ...] | Refusal]
_Rewrite = Callable[[ir.Node, Gauges, Known], tuple[Edit, ...] | Refusal]

_LAYERS: dict[str, _Read] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "GRU": recurrent,
    "Gemm": gemm,
    "GroupNormalization": normalisation,
    "InstanceNormalization": normalisation,
    "LSTM": recurrent,
    "LayerNormalization": normalisation,
    "RNN": recurrent,
}


def _laws_of(read: _Read) -> _Rule:
    def rule(node: ir.Node, port: Port, known: Known) -> tuple[Law, ...] | Refusal:
        layer = read(node, known)
        return layer if isinstance(layer, Refusal) else laws(layer, port, known)

    return rule


def _rewrite_of(read: _Read) -> _Rewrite:
    def edits(node: ir.Node, gauges: Gauges, known: Known) -> tuple[Edit, ...] | Refusal:
        layer = read(node, known)
        return layer if isinstance(layer, Refusal) else rewrite(layer, gauges)

    return edits


_PRODUCTS = ("Einsum", "MatMul")
RULES: dict[str, _Rule] = {name: _laws_of(read) for name, read in _LAYERS.items()}
RULES |= dict.fromkeys(_PRODUCTS, product_laws)
REWRITES: dict[str, _Rewrite] = {name: _rewrite_of(read) for name, read in _LAYERS.items()}
REWRITES |= dict.fromkeys(_PRODUCTS, product_rewrite)


def native_axes(node: ir.Node, value: ir.Value, known: Known) -> tuple[int, ...] | None:
    """Where `node` could hold a gauge of `value`, an operand or output of it: the axes that its weight acts on.

    None where it could not: no linear operator, no constant weight, or another operand than the data.
    """
    layer = _layer(node, known)
    if layer is None:
        return None
    for end in (layer.y,) if layer.x_keeps_its_scale else (layer.x, layer.y):
        if not isinstance(end, Refusal) and end.value is value:
            return tuple(sorted(end.axes)) or None
    return None


def _layer(node: ir.Node, known: Known) -> Layer | None:
    if not is_standard(node):
        return None
    if node.op_type in _PRODUCTS:
        found = product(node, known)
        return None if isinstance(found, Refusal) else found.layer
    layer = _LAYERS[node.op_type](node, known) if node.op_type in _LAYERS else None
    return None if isinstance(layer, Refusal) else layer

"""Where ONNX Runtime answers with other sizes than ONNX infers, nothing is known; the oracle here is its answer."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from training.fold.shapes import Shapes

CASES = [  # operator, opset, input, attributes, constants, is the last size doubted?
    ("MaxPool", 13, [1, 2, 6], {"kernel_shape": [2], "strides": [2], "ceil_mode": 1}, {}, False),
    ("MaxPool", 13, [1, 2, 7], {"kernel_shape": [2], "strides": [2], "ceil_mode": 1}, {}, False),
    ("MaxPool", 13, [1, 2, 8], {"kernel_shape": [1], "strides": [3], "ceil_mode": 1}, {}, True),
    ("MaxPool", 13, [1, 2, 6], {"kernel_shape": [2], "strides": [3], "ceil_mode": 1}, {}, True),
    ("AveragePool", 19, [1, 2, 6], {"kernel_shape": [3], "strides": [3], "pads": [0, 1], "ceil_mode": 1}, {}, True),
    ("AveragePool", 19, [1, 2, 5], {"kernel_shape": [2], "strides": [1], "auto_pad": "SAME_UPPER"}, {}, False),
    ("MaxPool", 18, [1, 2, 8], {"kernel_shape": [3], "dilations": [2], "auto_pad": "SAME_LOWER"}, {}, True),
    ("LpPool", 18, [1, 2, 3], {"kernel_shape": [2], "dilations": [2], "auto_pad": "SAME_UPPER"}, {}, True),
    ("Resize", 17, [1, 2, 5], {"mode": "nearest"}, {"": None, "s": [1, 1, 1.4]}, True),
    ("Resize", 17, [1, 2, 5], {"mode": "nearest"}, {"": None, "s": [1, 1, 2.0]}, False),
    ("Resize", 10, [1, 2, 5], {"mode": "nearest"}, {"s": [1, 1, 1.4]}, True),
    ("Upsample", 9, [1, 2, 5], {"mode": "nearest"}, {"s": [1, 1, 2.8]}, True),
    ("ConvTranspose", 17, [1, 2, 7], {"strides": [2], "output_shape": [5]}, {"w": np.ones((2, 2, 2))}, True),
    ("ConvTranspose", 17, [1, 2, 3], {"strides": [3], "auto_pad": "SAME_LOWER", "output_padding": [2]},
     {"w": np.ones((2, 2, 2))}, True),
    ("ConvTranspose", 17, [1, 2, 3], {"strides": [3], "output_padding": [2]}, {"w": np.ones((2, 2, 2))}, False),
    ("Squeeze", 19, [2, 1, 4, 1], {}, {"axes": np.zeros(0, np.int64)}, True),
]  # fmt: skip


@pytest.mark.parametrize(("operator", "opset", "sizes", "attributes", "constants", "doubted"), CASES)
def test_a_size_is_what_onnx_runtime_answers_or_unknown(operator, opset, sizes, attributes, constants, doubted) -> None:
    node = helper.make_node(operator, ["x", *constants], ["y"], **attributes)
    arrays = {n: np.asarray(a, None if hasattr(a, "dtype") else np.float32) for n, a in constants.items() if n}
    arrays = {n: a.astype(np.float32) if a.dtype == np.float64 else a for n, a in arrays.items()}
    graph = helper.make_graph(
        [node, helper.make_node("Relu", ["y"], ["z"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"x": np.zeros(sizes, np.float32)})

    model = ir.from_proto(proto)
    shapes = Shapes(model)
    for one in model.graph:  # what comes behind is doubted too
        known = shapes.dims(one.outputs[0])
        if doubted:
            assert known is None or known[-1] is None
        else:
            assert known == answer.shape
        assert known is None or all(size in (None, true) for size, true in zip(known, answer.shape, strict=True))

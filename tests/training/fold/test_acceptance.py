"""Issue 2's acceptance: one BatchNormalization each behind ConvTranspose, Gemm, MatMul+Add; one in training mode."""

import numpy as np

from tests.training.fold.models import acceptance_model, op_types, rng_of, statistics
from tests.training.fold.oracle import assert_same_function
from training.fold import fold


def test_all_but_the_one_in_training_mode_are_folded_and_it_says_why_not():
    folded, report = fold(acceptance_model())

    assert report.as_dict()["batchnorms"] == [
        {"name": "bn1", "verdict": "folded", "into": ["deconv"], "reason": ""},
        {"name": "bn2", "verdict": "folded", "into": ["gemm"], "reason": ""},
        {
            "name": "bn3",
            "verdict": "kept",
            "into": [],
            "reason": "training_mode=1: it normalises with the statistics of each batch",
        },
        {"name": "bn4", "verdict": "folded", "into": ["matmul", "bias"], "reason": ""},
    ]
    assert op_types(folded) == ["ConvTranspose", "Gemm", "Gemm", "BatchNormalization", "MatMul", "Add"]


def test_the_folded_model_computes_the_same():
    model = acceptance_model(dtype=np.float64)

    assert_same_function(model, fold(model)[0])


def test_its_interface_stays():
    model = acceptance_model()
    folded, _ = fold(model)
    for mine, theirs in ((model.graph.inputs, folded.graph.inputs), (model.graph.outputs, folded.graph.outputs)):
        assert [(v.name, v.type, v.shape) for v in mine] == [(v.name, v.type, v.shape) for v in theirs]


def test_hostile_statistics_are_drawn_from_both_signs_and_many_decades():
    """The tests' own generator: without these the numerical tests would be lenient."""
    drawn = statistics(rng_of(0), 1000)
    assert (drawn["g"] < 0).any() and (drawn["g"] == 0).any() and (np.abs(drawn["g"]) < 1e-7).any()
    assert drawn["v"].min() < 1e-11 and drawn["v"].max() > 1e5
    assert (np.abs(drawn["m"]) / np.sqrt(drawn["v"])).max() > 1e3

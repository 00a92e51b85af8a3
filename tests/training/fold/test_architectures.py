"""What folding makes of whole networks, counted exactly: those of `architectures`, with random weights.

Counts are those of `--profile generic`, which removes whatever algebra removes. Where less than everything goes, the
comment beside the count says why no more can.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from tests.training.fold.architectures import NETWORKS, SMALL, seeded
from tests.training.fold.architectures.branched import mobileone_s0, repvgg_a0
from tests.training.fold.architectures.preparing import BatchNorm, batchnorms, export_raw, settle, widened
from training.fold import FoldReport, Verdict, fold
from training.fold.precompute import precompute
from training.reference import evaluate
from training.samples import Sample
from training.verify import run, verify


class Counts(NamedTuple):
    """Of BatchNormalization; found = folded + reduced + kept, and the clamped are among the folded."""

    folded: int
    clamped: int = 0
    reduced: int = 0
    kept: int = 0

    @property
    def found(self) -> int:
        return self.folded + self.reduced + self.kept


RAW = {
    # 59 of the 62 in front of a ReLU: the first of a block's reads one tensor, which a convolution stores as it needs.
    "densenet121": Counts(121, clamped=59),
    # A ReLU stays one where all of its channels' scales are positive.
    "preact-resnet50": Counts(49, clamped=13),
    "preact-resnet18": Counts(17, clamped=5),
    # Zeros behind its channels end no stream: all ten that read it share one sign a channel, and one keeps its ReLU.
    "preact-resnet20-a": Counts(19, clamped=9),
    "pyramidnet20": Counts(29),
    # The first block's BatchNorm reads a PReLU's output, which can hold no shift, and feeds a zero-padded convolution.
    "iresnet50": Counts(78, reduced=1),
    "convmixer-relu": Counts(65, clamped=62),
    # GELU lets nothing pass. A block's input is given by one BatchNorm and added to another, so that both have one
    # scale: the second is rid of its own, and of its shift through the 1x1 convolution behind the sum; the first then
    # keeps both, since its shift meets zero padding. So goes one of each block's two, and the last before the head.
    "convmixer-gelu": Counts(33, kept=32),
    "levit": Counts(52),
    "pointnet": Counts(15),
    "repvgg-a0": Counts(61),
    "mobileone-s0": Counts(226),
    "shufflenet-v2": Counts(56),
    "unet": Counts(7),
    "vgg11": Counts(8),
    "nasnet": Counts(50),
    "se-resnet50": Counts(53),
    "xception": Counts(40),
    "hrnet": Counts(43),
    "crnn": Counts(3),
    "deepspeech2": Counts(7),
    "tabular": Counts(4),
}
# What a default export leaves to us: onnxscript has already folded what directly follows a Conv or a Gemm.
DEFAULT = {
    "iresnet50": Counts(24, reduced=1),
    "levit": Counts(48),
    "repvgg-a0": Counts(17),
    "deepspeech2": Counts(5),
}
EXPECTED = {(name, False): counts for name, counts in RAW.items()} | {
    (name, True): counts for name, counts in DEFAULT.items()
}
KEYS = [pytest.param(key, id=f"{key[0]}-default" if key[1] else key[0]) for key in EXPECTED]
RAW_KEYS = KEYS[: len(RAW)]
# The whole proof takes a minute on the largest; it is asked of one of each kind.
PROVED = [pytest.param((name, False), id=name) for name in ("preact-resnet18", "pointnet", "unet", "deepspeech2")]


def test_every_network_has_its_counts():
    assert {name: counts.found for name, counts in RAW.items()} == {
        name: network.batchnorms for name, network in NETWORKS.items()
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_a_narrow_network_has_the_batchnorms_of_the_published_one(name: str):
    network = NETWORKS[name]
    for build in (network.narrow, network.published):
        with torch.device("meta"):
            module = build()
        assert sum(isinstance(part, BatchNorm) for part in module.modules()) == network.batchnorms


def test_settled_statistics_are_those_of_the_activations():
    width, rows = 200, 64
    untouched = seeded(lambda: nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width)))

    module = settle(untouched, (3,), np.random.default_rng(0), rows)

    rng = np.random.default_rng(0)
    rng.random(width), rng.uniform(size=width), rng.normal(size=width)  # the signs, scales and shifts drawn before
    norm = module.requires_grad_(False)[1]
    seen = module[0](torch.from_numpy(rng.normal(size=(rows, 3)).astype(np.float32)))
    torch.testing.assert_close(norm.running_mean, seen.mean(0))
    torch.testing.assert_close(norm.running_var, seen.var(0))
    assert not module.training
    assert 0.05 < float((norm.weight < 0).float().mean()) < 0.15
    assert 0.7 <= float(norm.weight.abs().min()) <= float(norm.weight.abs().max()) <= 1.3


@pytest.mark.parametrize("key", RAW_KEYS)
def test_an_export_holds_every_batchnorm_and_computes_what_torch_does(key, exports):
    export = exports[key].result()

    assert batchnorms(export.model) == NETWORKS[key[0]].batchnorms
    assert error(run(export.model, {"x": export.x})["y"], export.y) < 1e-3


@pytest.mark.parametrize("key", KEYS)
def test_batchnorms_gone_and_left(key, folding):
    model, report = folding(key)

    summary = report.summary()
    assert Counts(*(summary[field] for field in Counts._fields)) == EXPECTED[key], report.as_text()
    assert batchnorms(model) == EXPECTED[key].kept
    assert all(outcome.reason for outcome in report.batchnorms if outcome.verdict is not Verdict.FOLDED)


@pytest.mark.parametrize("key", KEYS)
def test_in_float64_the_folded_network_is_the_same_function(key, exports, folding):
    """The whole graph in float64, so that no weight is rounded: what is left is the order of additions."""
    export = exports[key].result()
    original = widened(export.model)
    model, report = fold(original, profile="generic")

    sample = {"x": export.x[:1].astype(np.float64)}

    assert error(evaluate(model, sample)["y"], evaluate(original, sample)["y"]) < 1e-10
    assert decisions(report) == decisions(folding(key)[1])


@pytest.mark.parametrize("key", KEYS)
def test_in_float32_the_folded_network_is_as_close_to_torch_as_the_original(key, exports, folding):
    export = exports[key].result()
    before, after = (run(model, {"x": export.x})["y"] for model in (export.model, folding(key)[0]))

    assert error(after, export.y) < 10 * error(before, export.y) + 1e-5  # one draw: float64 and the proof are strict


@pytest.mark.parametrize("key", KEYS)
def test_a_second_fold_changes_nothing(key, folding):
    model, _ = folding(key)

    again, report = fold(model, profile="generic")

    assert not report.changed
    assert serialized(again) == serialized(model)


@pytest.mark.parametrize("key", RAW_KEYS)
def test_a_file_without_the_exporters_shapes_folds_as_well(key, exports, folding):
    proto = onnx.ModelProto.FromString(exports[key].result().data)
    del proto.graph.value_info[:]

    _, report = fold(ir.from_proto(proto), profile="generic")

    without, summary = report.summary(), folding(key)[1].summary()
    assert {field: without[field] for field in Counts._fields} == {field: summary[field] for field in Counts._fields}


@pytest.mark.parametrize("key", PROVED)
def test_the_proof_accepts_the_folded_network(key, exports, folding):
    export = exports[key].result()

    assert verify(export.model, folding(key)[0], [Sample({"x": export.x}, "noise")]).passed


@pytest.mark.parametrize(
    ("key", "build"),
    [
        pytest.param(("repvgg-a0", False), repvgg_a0, id="repvgg-a0"),
        pytest.param(("mobileone-s0", False), mobileone_s0, id="mobileone-s0"),
    ],
)
def test_parallel_branches_become_what_their_authors_deploy(key, build, folding):
    """One convolution a block, and not a node beside those of the authors' own deployed form."""
    deployed = export_raw(seeded(lambda: build(8, 10, deployed=True)).eval(), SMALL)
    precompute(deployed)  # of the exporter's chains of constants nothing is left in ours either

    model, report = folding(key)

    assert operators(model) == operators(deployed)
    assert report.summary()["branches_merged"] > 0


@pytest.mark.parametrize("key", [pytest.param(("iresnet50", False), id="iresnet50")])
def test_widening_takes_out_the_add_that_is_left(key, exports, folding):
    """Row F3(d): the stem's convolution emits ones, and the first block's reads the shift from them."""
    export = exports[key].result()
    original = widened(export.model)

    model, report = fold(original, profile="generic", widen=True)

    last = next(outcome for outcome in report.batchnorms if outcome.widened)
    assert report.summary()["folded"] == report.summary()["found"] == 79 and report.summary()["widened"] == 1
    assert len(last.into) == 2 and operators(model) + Counter({"Add": 1}) == operators(folding(key)[0])
    sample = {"x": export.x[:1].astype(np.float64)}
    assert error(evaluate(model, sample)["y"], evaluate(original, sample)["y"]) < 1e-10
    for widen in (True, False):
        assert not fold(model, "generic", widen)[1].changed


def decisions(report: FoldReport) -> dict[str, int]:
    return {key: count for key, count in report.summary().items() if "bytes" not in key}


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def serialized(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest, of the output's scale."""
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())

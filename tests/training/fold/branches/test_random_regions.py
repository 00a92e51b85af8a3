"""Any sum of linear branches computes the same after merging, whatever was merged; and much is merged."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.training.fold.branches.regions import conv_region, linear_region
from tests.training.fold.branches.support import merge
from tests.training.fold.models import op_types

# How many are drawn; how many of them merge at all, into several results, and with a BatchNormalization.
REGIONS = {"convolutions": (conv_region, 240, (150, 12, 100)), "linear layers": (linear_region, 120, (90, 12, 6))}


@pytest.mark.parametrize("kind", REGIONS)
def test_random_regions_are_merged_exactly(kind: str) -> None:
    region, count, at_least = REGIONS[kind]
    seen: Counter[str] = Counter()
    for seed in range(count):
        model = region(seed)
        nodes = len(op_types(model))
        try:
            records = merge(model)
        except AssertionError as error:
            raise AssertionError(f"seed {seed} of {kind}") from error
        assert (len(op_types(model)) < nodes) == bool(records)
        seen["merged"] += bool(records)
        seen["several"] += len(records) > 1
        seen["batchnorms"] += any(record.batchnorms for record in records)
    assert tuple(seen[key] >= least for key, least in zip(seen, at_least, strict=True)) == (True, True, True), seen

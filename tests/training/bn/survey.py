"""How many of the forty-five faults are found, in each kind of network, and how many healthy networks are called ill.

python -m tests.training.bn.survey             all faults in all kinds, thirty healthy networks
python -m tests.training.bn.survey --known     without the held-out faults: for work on thresholds
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from tests.training.bn.faults import FAULTS, Fault, Scene, applicable, healthy
from tests.training.bn.networks import KINDS, trained
from training.bn.diagnosis import Diagnosis, examine
from training.bn.findings import SEVERITIES

FOUND_SHARE = 0.95
VARIANTS = (
    {"seed": 1},
    {"seed": 2, "width": 24},
    {"seed": 3, "momentum": 0.05, "steps": 250},
    {"seed": 4, "width": 8, "steps": 200},
    {"seed": 5, "momentum": 0.2},
)
"""Of each kind: thirty healthy networks in all."""


@dataclass(frozen=True)
class Trial:
    """One fault in one kind of network, and whether it was found."""

    fault: Fault
    kind: str
    found: bool


@cache
def network(kind: str) -> nn.Module:
    return trained(kind)


def look(scene: Scene) -> Diagnosis:
    return examine(scene.model, scene.batches, masks=scene.masks, facts=scene.facts, ranks=scene.ranks)


@cache
def before(kind: str) -> Diagnosis:
    """Of the network as it was, in good health."""
    return look(healthy(kind, network(kind)))


def trial(fault: Fault, kind: str) -> Trial:
    scene = healthy(kind, network(kind))
    scene = fault.inject(scene) or scene
    where = {"victim": scene.kind.victim, "closing": scene.kind.closing}.get(fault.where)
    known = {(old.check, old.layer, old.severity) for old in before(kind).findings}
    found = any(
        new.check == fault.check
        and (where is None or new.layer == where)
        and SEVERITIES.index(new.severity) <= SEVERITIES.index(fault.least)  # type: ignore[arg-type]
        and (new.check, new.layer, new.severity) not in known
        for new in look(scene).findings
    )
    return Trial(fault, kind, found)


def trials(faults: Iterable[Fault]) -> Iterator[Trial]:
    for fault in faults:
        yield from (trial(fault, kind) for kind in KINDS if fault in applicable(KINDS[kind]))


def of_health(kind: str, variant: dict[str, float]) -> Diagnosis:
    """One healthy network of the thirty."""
    steps = int(variant.get("steps", 150))
    return look(healthy(kind, trained(kind, **variant), steps=steps))  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--known", action="store_true")
    known_only = parser.parse_args().known
    torch.set_num_threads(1)
    every: list[Trial] = []
    shares: list[float] = []
    for held_out in (False,) if known_only else (False, True):
        told = list(trials(fault for fault in FAULTS if fault.held_out == held_out))
        missed: dict[str, list[str]] = defaultdict(list)
        for each in told:
            if not each.found:
                missed[f"{each.fault.check} {each.fault.name}"].append(each.kind)
        share = sum(each.found for each in told) / len(told)
        every += told
        shares.append(share)
        print(f"{'held out' if held_out else 'known'}: {share:.2%} of {len(told)} found")
        for name, kinds in missed.items():
            print(f"  missed: {name} in {', '.join(kinds)}")
    red = yellow = count = 0
    for kind in KINDS:
        for variant in VARIANTS:
            diagnosis = of_health(kind, copy.copy(variant))
            count += 1
            red += not diagnosis.healthy
            yellow += bool(diagnosis.of("yellow"))
            for finding in (*diagnosis.of("red"), *diagnosis.of("yellow")):
                print(f"  {kind} {variant}: {finding.severity} {finding.check} {finding.layer}: {finding.found}")
    print(f"healthy: {red} of {count} red, {yellow} yellow")
    share = sum(each.found for each in every) / len(every)
    print(f"all faults: {share:.2%} found; expected of each half: {FOUND_SHARE:.0%}")
    sys.exit(0 if min(shares) >= FOUND_SHARE and not red else 1)


if __name__ == "__main__":
    main()

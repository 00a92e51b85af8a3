"""The health of a BatchNorm network, told from figures: checks H1 to H12 and H14. Pure: figures in, findings out.

A check that lacks what it needs says so instead of passing. Thresholds stand here, each with its reason; where a figure
is measured on few rows, what chance alone would show is added to its threshold. Knows no network and no torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from training.bn.facts import Facts
from training.bn.figures import Array, Examined, Flags, LayerFigures, Statistics
from training.bn.findings import Finding, NotMade, Severity

DEAD_SHARE = 1e-3  # of the layer's median gamma
ASLEEP = 1e-2  # every gamma below: beside a skip of order 1, the block's answer is lost
SMALL_VARIANCE = 10.0  # times epsilon: below, epsilon and not the data decides the scale by more than 5 %
MOST_GAIN, MOST_SPREAD = 1e3, 1e4  # what the weights take up in folding; float16 holds 65,504
INITIAL_SHARE, INITIAL_RED = 0.01, 0.1  # of a running average that is still the initial 0 and 1
SHIFT, LOG_RATIO = 0.1, 0.2  # of a standard deviation; of variances, 22 %
RED_DRIFT = 3.0  # times those; healthy networks of six kinds reach 0.3 times at most
CHANCE = 3.0  # standard errors
ENOUGH_VALUES, RED_VALUES = 32.0, 8.0  # a batch's mean is then 0.18 and 0.35 standard deviations off
ALIKE = 2.0  # times the scatter of random rows: a batch then says less than half of what its rows could
GAP, RED_GAP = 0.3, 1.0  # of the spread of the answers; batches of 64 alone make up to about 0.2
DISAGREEMENT, RED_DISAGREEMENT = 0.1, 0.3  # of the rows
ACCURACY_GAP = 0.02
COUNT_TOLERANCE = 0.01
MOST_PADDING = 0.05
LEAST_RATE, MOST_RATE = 1e-7, 1e2  # learning rate over the square norm of a channel's weights
RATE_RATIO = 1e4  # against the network's median; initialisations differ by up to 1e3
_SHOWN = 6

Outcome = Finding | NotMade


def health(examined: Examined, facts: Facts | None = None) -> list[Outcome]:
    """All that the figures tell, check by check."""
    facts = facts or Facts()
    return [outcome for check in _CHECKS for outcome in check(examined, facts)]


def drift(old: Statistics, new: Statistics, eps: float) -> tuple[Array, Array]:
    """Of each channel: distance of the means in new standard deviations, and |log| of the variances' ratio.

    Epsilon counts as variance, as it does when the layer serves: below it nothing matters. Infinite where bad.
    """
    with np.errstate(all="ignore"):
        shift = np.abs(old.mean - new.mean) / np.sqrt(new.variance + eps)
        ratio = np.abs(np.log((old.variance + eps) / (new.variance + eps)))
    return np.nan_to_num(shift, nan=math.inf), np.nan_to_num(ratio, nan=math.inf)


def allowance(layer: LayerFigures, rows: int) -> tuple[float, float]:
    """What chance alone may add to the two, in an examination of so many rows."""
    per_row = layer.seen.effective_per_row if layer.seen else None
    values = max(rows * (per_row or 1.0), 1.0)
    return CHANCE / math.sqrt(values), CHANCE * math.sqrt(2.0 / values)


# --- what the layers hold -----------------------------------------------------------------------------------------


def _dead_channels(examined: Examined, _: Facts) -> Iterator[Outcome]:
    unknown = []
    for layer in examined.layers:
        if layer.gamma is None or not np.isfinite(layer.gamma).all() or _is_asleep(layer):
            continue
        size = np.abs(layer.gamma)
        dead = size < DEAD_SHARE * np.median(size) if size.any() else size == 0
        if layer.clamped and layer.beta is not None:
            dead |= layer.beta + 3 * size < 0
        elif layer.clamped is None:
            unknown.append(layer.name)
        if dead.any():
            yield Finding(
                "H1", layer.name, "yellow", f"{dead.sum()} of {layer.channels} channels say nothing: {_some(dead)}",
                f"gamma above {DEAD_SHARE:g} of the layer's median, and a ReLU that lets something pass",
                f"prune them: {dead.mean():.0%} of the work of the layers before and behind",
            )  # fmt: skip
    if unknown:
        yield NotMade("H1", "whether a ReLU follows is not known: the network cannot be followed there", tuple(unknown))


def _asleep(examined: Examined, _: Facts) -> Iterator[Outcome]:
    unknown = tuple(layer.name for layer in examined.layers if layer.closes_block is None)
    for layer in examined.layers:
        if layer.gamma is not None and _is_asleep(layer):
            yield Finding(
                "H2", layer.name, "yellow", f"largest gamma {np.abs(layer.gamma).max():.2g}",
                f"above {ASLEEP:g}: this block adds nothing to its skip", "train longer, or leave the block out",
            )  # fmt: skip
    if unknown:
        yield NotMade("H2", "whether they close a residual block is not known: it cannot be followed there", unknown)


def _is_asleep(layer: LayerFigures) -> bool:
    return bool(layer.closes_block) and layer.gamma is not None and bool((np.abs(layer.gamma) < ASLEEP).all())


def _bad_variance(examined: Examined, _: Facts) -> Iterator[Outcome]:
    for layer in examined.layers:
        variance, rows = layer.running.variance, [layer.running.mean, layer.running.variance, layer.gamma, layer.beta]
        finite = np.all([np.isfinite(row) for row in rows if row is not None], axis=0)
        constant = np.zeros(layer.channels, dtype=bool)
        if layer.seen is not None:
            constant = layer.seen.population.variance <= np.finfo(np.float32).tiny
        small = finite & (variance < SMALL_VARIANCE * layer.eps)
        kinds: Sequence[tuple[Severity, Flags, str, str]] = (
            ("red", ~finite, "not finite", "re-estimate the statistics; if gamma or beta, go back to a checkpoint"),
            ("red", finite & (variance < 0), "below 0", "re-estimate the statistics"),
            ("red", finite & (variance == 0) & ~constant, "0", "re-estimate the statistics"),
            ("yellow", small & (variance >= 0) & ((variance > 0) | constant), f"below {SMALL_VARIANCE:g} epsilon",
             "a larger epsilon while training, or leave out what never varies"),
        )  # fmt: skip
        for severity, which, words, fix in kinds:
            if which.any():
                yield Finding(
                    "H3", layer.name, severity, f"variance {words} in {int(which.sum())} of {layer.channels} channels: "
                    f"{_some(which)}", f"finite, and above {SMALL_VARIANCE * layer.eps:.2g}", fix,
                )  # fmt: skip


def _gain(examined: Examined, _: Facts) -> Iterator[Outcome]:
    fix = "keep this layer in float32: folded weights take the gain up, and float16 or int8 lose the small channels"
    for layer in examined.layers:
        gain = np.abs(layer.gain)
        alive = np.isfinite(gain) & (gain > 0)
        if layer.gamma is not None:
            alive &= np.abs(layer.gamma) >= DEAD_SHARE * np.median(np.abs(layer.gamma))
        if not alive.any():
            continue
        largest, spread = float(gain[alive].max()), float(gain[alive].max() / gain[alive].min())
        if largest > MOST_GAIN:
            expected = f"at most {MOST_GAIN:g}"
            yield Finding("H4", layer.name, "yellow", f"multiplies a channel by {largest:.3g}", expected, fix)
        elif spread > MOST_SPREAD:
            found = f"the largest gain is {spread:.3g} times the smallest"
            yield Finding("H4", layer.name, "yellow", found, f"at most {MOST_SPREAD:g}", fix)


def _untrained(examined: Examined, _: Facts) -> Iterator[Outcome]:
    """By the counter; what the data say goes first."""
    uncounted = tuple(layer.name for layer in examined.layers if layer.count is None)
    for layer in examined.layers:
        if layer.count is None:
            continue
        left = 0.0 if layer.momentum is None and layer.count else (1.0 - (layer.momentum or 0.0)) ** layer.count
        if left <= INITIAL_SHARE:
            continue
        initial = bool((layer.running.mean == 0).all() and (layer.running.variance == 1).all())
        found = (
            f"{layer.count} batches at momentum {layer.momentum:g}: " if layer.momentum is not None else "no batch: "
        )
        found += "the initial 0 and 1, untouched" if initial else f"{left:.0%} of them is still the initial 0 and 1"
        severity: Severity = "red" if left > INITIAL_RED else "yellow"
        if not initial and layer.seen is not None and _drift_severity(layer, examined.rows) is None:
            severity, found = "note", f"{found}, says the counter; yet they are what the data say: measured elsewhere"
        elif not initial and not layer.count:
            severity, found = "yellow", "the counter says that no batch was seen, yet they are not the initial 0 and 1"
        yield Finding(
            "H5", layer.name, severity, found, f"at most {INITIAL_SHARE:.0%}: {_steps_needed(layer.momentum)}",
            "re-estimate the statistics",
        )  # fmt: skip
    if uncounted:
        yield NotMade("H5", "they keep no count of batches (num_batches_tracked)", uncounted)


def _steps_needed(momentum: float | None) -> str:
    if momentum is None or momentum >= 1:
        return "one batch"
    if momentum <= 0:
        return "never, at this momentum"
    return f"{math.ceil(math.log(INITIAL_SHARE) / math.log1p(-momentum)):,} batches"


# --- what batches show --------------------------------------------------------------------------------------------


def _drift(examined: Examined, _: Facts) -> Iterator[Outcome]:
    if not examined.rows:
        yield NotMade("H6", examined.unseen)
        return
    if unseen := tuple(layer.name for layer in examined.layers if layer.seen is None):
        yield NotMade("H6", "no batch gave them two values a channel", unseen)
    for layer in examined.layers:
        severity = _drift_severity(layer, examined.rows)
        if severity and layer.seen is not None:
            shift, ratio = drift(layer.running, layer.seen.population, layer.eps)
            allowed = [
                limit + more for limit, more in zip((SHIFT, LOG_RATIO), allowance(layer, examined.rows), strict=True)
            ]
            yield Finding(
                "H6", layer.name, severity,
                f"means up to {shift.max():.2g} standard deviations off, variances by a factor of up to "
                f"{_factor(float(ratio.max()))}",
                f"at most {allowed[0]:.2g} and {_factor(allowed[1])} over {examined.rows} rows",
                "re-estimate the statistics, with data as it will be served",
            )  # fmt: skip


def _drift_severity(layer: LayerFigures, rows: int) -> Severity | None:
    if layer.seen is None:
        return None
    worst = [float(each.max()) for each in drift(layer.running, layer.seen.population, layer.eps)]
    chance = allowance(layer, rows)
    for severity, factor in (("red", RED_DRIFT), ("yellow", 1.0)):
        limits = (factor * SHIFT + chance[0], factor * LOG_RATIO + chance[1])
        if any(found > limit for found, limit in zip(worst, limits, strict=True)):
            return severity  # type: ignore[return-value]
    return None


def _small_batch(examined: Examined, facts: Facts) -> Iterator[Outcome]:
    """By what its rows are worth, and by whether they are alike: rows that are sorted, repeated or changed together say
    as little as a few would, however many values they have."""
    if not examined.rows:
        yield NotMade("H7", examined.unseen)
        return
    yield from _alike_rows(examined)
    if facts.batch_rows is None:
        yield NotMade("H7", "needs the rows in a batch of the training")
    else:
        known = {layer.name: layer.seen.effective_per_row for layer in examined.layers if layer.seen}
        unknown = tuple(name for name, per_row in known.items() if per_row is None)
        if unknown:
            yield NotMade("H7", f"{examined.batches} batches are too few to tell how their means scatter", unknown)
        for name, per_row in known.items():
            values = math.inf if per_row is None else per_row * facts.batch_rows
            if values < ENOUGH_VALUES:
                yield Finding(
                    "H7", name, "red" if values < RED_VALUES else "yellow",
                    f"a batch of {facts.batch_rows} rows says as much about the mean as {values:.1f} free values",
                    f"at least {ENOUGH_VALUES:g}",
                    "SyncBatchNorm, batch renorm or a frozen finish; GroupNorm remains at inference",
                )  # fmt: skip


def _alike_rows(examined: Examined) -> Iterator[Outcome]:
    # Of a variance that is told from so many means. Channels go together, so their number promises nothing.
    limit = ALIKE * (1.0 + CHANCE * math.sqrt(2.0 / max(examined.batches - 1, 1)))
    seen = {layer.name: layer.seen for layer in examined.layers if layer.seen}
    unlike = tuple(name for name, one in seen.items() if one.alikeness is None and one.effective_per_row is not None)
    if unlike:
        yield NotMade(
            "H7", "whether rows are alike is not known: what they are given has other rows than a batch", unlike
        )
    for name, one in seen.items():
        if one.alikeness is not None and one.alikeness > limit:
            yield Finding(
                "H7", name, "yellow",
                f"the rows of a batch are alike: {one.alikeness:.2g} of them say as much as one drawn at random",
                f"at most {limit:.2g}, over {examined.batches} batches",
                "shuffle the rows, and change each by itself; else batch renorm or a frozen finish",
            )  # fmt: skip


def _gap(examined: Examined, _: Facts) -> Iterator[Outcome]:
    answers = examined.answers
    if answers is None:
        reason = "the network answers with no tensor of real numbers" if examined.rows else examined.unseen
        yield NotMade("H8", reason)
        return
    size = f"{answers.gap:.0%} of their spread" if math.isfinite(answers.gap) else "more than any number"
    found, severity = f"answers differ by {size}", _between(answers.gap, GAP, RED_GAP)
    if answers.disagreement is not None:
        found += f", {answers.disagreement:.1%} of {answers.rows} rows get another class"
        chance = CHANCE * math.sqrt(DISAGREEMENT * (1 - DISAGREEMENT) / answers.rows)
        severity = _between(answers.disagreement, DISAGREEMENT + chance, RED_DISAGREEMENT + chance) or severity
    if severity == "red" and not any(_drift_severity(layer, examined.rows) for layer in examined.layers):
        # By right statistics the answers of serving are right; what is off is what each batch makes of the others.
        severity, found = "yellow", f"{found}; no layer drifts, so it is the batches that are small for this network"
    if answers.accuracy is not None:
        running, by_batch = answers.accuracy
        found += f", accuracy {running:.1%} against {by_batch:.1%}"
        chance = CHANCE * math.sqrt(max(by_batch * (1 - by_batch), 0.01) / answers.rows)
        severity = "red" if by_batch - running > ACCURACY_GAP + chance else severity
    if severity:
        yield Finding(
            "H8", "", severity, f"by running statistics instead of the batch's, {found}", f"less than {GAP:.0%}",
            "re-estimate the statistics, or finish the training with them frozen",
        )  # fmt: skip


def _between(value: float, yellow: float, red: float) -> Severity | None:
    return "red" if value > red else "yellow" if value > yellow else None


# --- what the training tells --------------------------------------------------------------------------------------


def _counts(examined: Examined, facts: Facts) -> Iterator[Outcome]:
    counts = {
        layer.name: layer.count / (layer.seen.sites if layer.seen else 1) for layer in examined.layers if layer.count
    }
    if not counts:
        yield NotMade("H9", "no layer has counted a batch")
        return
    if facts.steps is None:
        yield NotMade("H9", "needs the number of steps; layers are compared with each other alone")
        usual = Counter(counts.values()).most_common(1)[0][0]
        for name, count in counts.items():
            if round(count / usual) >= 2 and abs(count / usual - round(count / usual)) < COUNT_TOLERANCE:
                yield _miscounted(name, count, f"{usual:g}, as its neighbours")
        return
    expected = facts.steps * (facts.accumulation or 1)
    for name, count in counts.items():
        if abs(count - expected) > max(COUNT_TOLERANCE * expected, 1.0):
            yield _miscounted(name, count, f"{expected:g}: one each batch of {facts.steps} steps", count / facts.steps)


def _miscounted(name: str, count: float, expected: str, times: float = 2.0) -> Finding:
    whole = round(times) >= 2 and abs(times - round(times)) < COUNT_TOLERANCE * times
    fix = (
        "find the passes in training mode beside the steps: a sanity check, a search for a learning rate, a second loss"
    )
    if whole:
        fix = (
            f"activation checkpointing or accumulation counts {round(times)} times: set momentum to "
            f"1 - (1 - m)^(1/{round(times)}), or keep the second pass from updating"
        )
    return Finding("H9", name, "yellow", f"counted {count:g} batches a use", expected, fix)


def _ranks(examined: Examined, _: Facts) -> Iterator[Outcome]:
    if not examined.ranks:
        yield NotMade("H10", "needs the statistics of the other processes; of no concern if there was one")
    for layer in examined.layers:
        worst = [0.0, 0.0]
        for rank in examined.ranks:
            if layer.name in rank and len(rank[layer.name].mean) == layer.channels:
                apart = drift(rank[layer.name], layer.running, layer.eps)
                worst = [max(old, float(new.max())) for old, new in zip(worst, apart, strict=True)]
        times = max(worst[0] / SHIFT, worst[1] / LOG_RATIO)
        severity: Severity | None = _between(times, COUNT_TOLERANCE, RED_DRIFT)
        if severity:
            yield Finding(
                "H10", layer.name, severity,
                f"means {worst[0]:.2g} standard deviations apart, variances by a factor of {_factor(worst[1])}",
                "the same in every process", "reduce them, weighted by rows, or re-estimate",
            )  # fmt: skip


def _padding(examined: Examined, _: Facts) -> Iterator[Outcome]:
    if examined.padded is None:
        yield NotMade("H12", "needs a mask of padded positions" if examined.rows else examined.unseen)
        return
    unknown = tuple(layer.name for layer in examined.layers if layer.seen is None or layer.seen.unpadded is None)
    if unknown:
        yield NotMade("H12", "the mask has not the shape of their positions", unknown)
    if examined.padded > MOST_PADDING:
        worst = [
            (float(drift(layer.seen.population, layer.seen.unpadded, layer.eps)[0].max()), layer.name)
            for layer in examined.layers
            if layer.seen and layer.seen.unpadded
        ]
        told = f"; it shifts means of {max(worst)[1]} by up to {max(worst)[0]:.2g} standard deviations" if worst else ""
        yield Finding(
            "H12", "", "yellow", f"{examined.padded:.0%} of the positions are padding{told}",
            f"at most {MOST_PADDING:.0%}", "leave them out of the statistics by a mask, or sort rows by length",
        )  # fmt: skip


def _effective_rate(examined: Examined, facts: Facts) -> Iterator[Outcome]:
    norms = {layer.name: layer.weight_norm for layer in examined.layers if layer.weight_norm}
    if unknown := tuple(layer.name for layer in examined.layers if not layer.weight_norm):
        yield NotMade("H14", "what feeds them is no Linear or convolution that could be found", unknown)
    if not norms:
        return
    if facts.learning_rate is None:
        yield NotMade("H14", "needs the learning rate; layers are compared with each other alone")
    usual = float(np.median(list(norms.values())))
    for name, norm in norms.items():
        rate = None if facts.learning_rate is None else facts.learning_rate / norm
        outside = rate is not None and not LEAST_RATE <= rate <= MOST_RATE
        if outside or max(norm / usual, usual / norm) > RATE_RATIO:
            of_rate = f", an effective rate of {rate:.2g}" if rate is not None else ""
            yield Finding(
                "H14", name, "yellow", f"a channel's weights have a square norm of {norm:.2g}{of_rate}; the usual one "
                f"here is {usual:.2g}", f"a rate from {LEAST_RATE:g} to {MOST_RATE:g}, and norms within {RATE_RATIO:g} "
                "times of each other", "more weight decay, or a lower rate" if norm > usual else "less weight decay",
            )  # fmt: skip


def _factor(log_ratio: float) -> str:
    return f"{math.exp(log_ratio):.3g}" if log_ratio < 700 else "more than any number"  # beyond, exp overflows


def _some(which: Flags) -> str:
    numbers = [str(number) for number in np.flatnonzero(which)]
    return ", ".join(numbers[:_SHOWN]) + (f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else "")


_CHECKS: Sequence[Callable[[Examined, Facts], Iterator[Outcome]]] = (
    _dead_channels, _asleep, _bad_variance, _gain, _untrained, _drift, _small_batch, _gap, _counts, _ranks, _padding,
    _effective_rate,
)  # fmt: skip

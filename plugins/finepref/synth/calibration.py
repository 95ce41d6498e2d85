"""Calibration: of the answers that a model gives with confidence c, is a share c right?

Formula: over the non-empty bins b, gap_b = |accuracy_b - confidence_b|;
         ECE = sum_b (count_b / N) gap_b,  ACE = mean_b gap_b,  MCE = max_b gap_b
Where:   B bins of equal width over [0, 1], [i/B, (i+1)/B), the last one closed; confidence_b is the mean confidence in
         bin b, accuracy_b the share that is right.
Source:  APO (arXiv 2311.08045) reports ECE with 10 bins.
Not covered: bins of equal mass.

A pair of responses is an answer too: the model prefers the one with the higher reward, with confidence
sigmoid(|r_i - r_j|), from .5 to 1 (`of_margins`). Each pair counts once. The authors' code counts it in both orders;
the mirror image below .5 has the same gaps, so that the three figures are the same.

Only NumPy is needed; matplotlib for the diagram.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from finepref.synth.intervals import wilson

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Rescale = Callable[[float], ArrayLike]
"""Temperature -> the confidence [N] in the same answers at that temperature."""

BINS = 10
RESAMPLES = 1000
COVERAGE = 95.0
"""Per cent of the bootstrap distribution in an interval."""
FEWEST_TO_FIT = 20
"""With fewer groups no temperature is fitted."""
HOTTEST = 100.0
"""Temperatures from 1/HOTTEST to HOTTEST are tried."""
ERRORS = ("ece", "ace", "mce")


class Bins(NamedTuple):
    """A reliability diagram, all float64 [bins]; confidence and accuracy of an empty bin are 0."""

    count: Floats  # type: ignore[assignment]
    confidence: Floats
    accuracy: Floats


class CalibrationError(NamedTuple):
    """ECE, ACE and MCE, in [0, 1]."""

    expected: float
    average: float
    maximum: float


def reliability(confidence: ArrayLike, correct: ArrayLike, *, bins: int = BINS) -> Bins:
    """Sort answers [N] into bins of equal width.

    Args:
        confidence: probability that each answer is right, in [0, 1].
        correct: whether it is: 1 or 0, or a share between them.
        bins: number of bins over [0, 1].

    Raises:
        ValueError: no answers, different lengths, or a number outside [0, 1].
    """
    p, y = _checked(confidence, correct)
    which = _bin_of(p, bins)
    count = np.bincount(which, minlength=bins).astype(np.float64)
    filled = np.maximum(count, 1)
    p, y = (np.bincount(which, weights=each, minlength=bins) / filled for each in (p, y))
    return Bins(count, p, y)


def calibration_error(confidence: ArrayLike, correct: ArrayLike, *, bins: int = BINS) -> CalibrationError:
    """ECE, ACE and MCE of answers [N]; arguments and errors as of `reliability`."""
    count, p, y = reliability(confidence, correct, bins=bins)
    return CalibrationError(*_errors(count[None], (count * p)[None], (count * y)[None])[:, 0].tolist())


def of_margins(margins: ArrayLike) -> tuple[Floats, Floats]:
    """(confidence, correct) of pairs, each counted once: sigmoid(|m|) in [.5, 1], and whether m > 0.

    A tie is half right, with confidence .5.

    Args:
        margins: [P] reward of the better response minus that of the worse one.
    """
    m = np.asarray(margins, dtype=np.float64).ravel()
    return _sigmoid(np.abs(m)), (m > 0) + (m == 0) / 2


def of_logits(logits: ArrayLike, right: ArrayLike, *, temperature: float = 1.0) -> tuple[Floats, Floats]:
    """(confidence, correct) of choices among options: the most probable one's softmax, and whether it is right.

    Args:
        logits: [N, K]; log-probabilities serve too.
        right: [N] index of the right option.
        temperature: divides the logits.
    """
    z = np.asarray(logits, dtype=np.float64) / temperature
    z = np.exp(z - z.max(axis=1, keepdims=True))
    return z.max(axis=1) / z.sum(axis=1), (z.argmax(axis=1) == np.asarray(right)).astype(np.float64)


def calibration(
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    rescale: Rescale | None = None,
    bins: int = BINS,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """All figures of the calibration of answers [N], JSON-ready.

    - `n`, `groups`: answers, and groups of them that are drawn together.
    - `accuracy`, `confidence`: means; `gap` = confidence - accuracy, above 0 if the model is overconfident.
    - `ece`, `ace`, `mce`: see this module.
    - `intervals`: 95 % bootstrap intervals of these figures, over groups. Resampling raises a calibration error, so
      those of ece, ace and mce are shifted to have the figure as their mean.
    - `ece_if_calibrated`: mean and 95th percentile of the ECE of a model that has these confidences and is calibrated
      perfectly, as answers are few.
    - `verdict`: "overconfident" or "underconfident" if the interval of `gap` excludes 0, else "neither".
    - `bins`: of every bin that is not empty `from`, `to`, `n`, `confidence`, `accuracy`, and Wilson's 95 % `interval`
      of the accuracy.
    - `temperature`: the T whose confidences have the least negative log-likelihood, above 1 for an overconfident
      model; None if there are fewer than 20 groups, or if ever smaller or greater T are better.
    - `after_temperature`: accuracy to bins at T, or None. Every group is rescaled by a T that was fitted to the other
      half of the groups, so that the figures are not those of the data that T was fitted to.

    Args:
        confidence: probability that each answer is right.
        correct: whether it is: 1 or 0, or a share between them.
        groups: which answers are not independent, such as all pairs of one prompt: a label for each. None: all are.
        rescale: the confidences at a temperature; by default the log-odds of `confidence` over T, which for pairs is
            the reward over T. For choices among more options give `of_logits` at T.
        bins: number of bins over [0, 1].
        resamples: number of bootstrap samples.
        seed: of the resamples.

    Raises:
        ValueError: see `reliability`.
    """
    p, y = _checked(confidence, correct)
    members = np.arange(len(p), dtype=np.int64)
    if groups is not None:
        members = np.unique(np.asarray(groups), return_inverse=True)[1].ravel().astype(np.int64)
    if len(members) != len(p):
        raise ValueError(f"{len(members)} groups for {len(p)} answers")
    at = rescale or _log_odds(p)
    found = {"n": len(p), "groups": int(members.max()) + 1}
    found |= _figures(p, y, members, bins=bins, resamples=resamples, seed=seed)
    temperature = fit_temperature(at, y) if found["groups"] >= FEWEST_TO_FIT else None
    after = None
    if temperature is not None:
        after = _figures(_crossed(at, y, members), y, members, bins=bins, resamples=resamples, seed=seed)
    return found | {"temperature": temperature, "after_temperature": after}


def fit_temperature(at: Rescale, correct: ArrayLike) -> float | None:
    """The temperature with the least negative log-likelihood of which answers are right; None if it has no minimum.

    Args:
        at: temperature -> confidence [N].
        correct: [N].
    """
    y = np.asarray(correct, dtype=np.float64).ravel()

    def loss(log_t: float) -> float:
        p = np.clip(np.asarray(at(float(np.exp(log_t))), dtype=np.float64).ravel(), 1e-12, 1 - 1e-12)
        return -float(np.mean(y * np.log(p) + (1 - y) * np.log1p(-p)))

    grid = np.linspace(-np.log(HOTTEST), np.log(HOTTEST), 93)
    best = int(np.argmin([loss(float(each)) for each in grid]))
    if best in (0, len(grid) - 1):
        return None
    low, high = float(grid[best - 1]), float(grid[best + 1])
    shrink = (5**0.5 - 1) / 2
    while high - low > 1e-5:  # golden section
        left, right = high - shrink * (high - low), low + shrink * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return float(np.exp((low + high) / 2))


def described(found: Mapping[str, Any]) -> list[str]:
    """Sentences that say what `calibration` found."""
    low, high = found["intervals"]["ece"]
    chance = found["ece_if_calibrated"]
    lines = [
        f"accuracy {found['accuracy']:.3f}, mean confidence {found['confidence']:.3f}, ECE {found['ece']:.3f} "
        f"({low:.3f} to {high:.3f}); a calibrated model would show an ECE of {chance['mean']:.3f} "
        f"(at most {chance['percentile_95']:.3f} in 95 % of cases) on {found['n']} such answers"
    ]
    low, high = found["intervals"]["gap"]
    gap = f"confidence minus accuracy is {found['gap']:+.3f} ({low:+.3f} to {high:+.3f})"
    if found["verdict"] == "overconfident":
        lines.append(f"overconfident: it is right less often than it is sure; {gap}")
    elif found["verdict"] == "underconfident":
        lines.append(f"underconfident: it is right more often than it is sure; {gap}")
    else:
        lines.append(f"neither over- nor underconfidence is shown: {gap}")
    if (temperature := found["temperature"]) is not None:
        after = found["after_temperature"]
        lines.append(
            f"temperature {temperature:.3g} fits best (above 1 lowers confidence); ECE {after['ece']:.3f} after it, "
            "fitted on one half of the data and applied to the other"
        )
    return lines


def draw(found: Mapping[str, Any], file: Path, *, title: str, lowest: float = 0.0, unit: str = "answers") -> None:
    """Write the reliability diagram as a PNG file: in each bin accuracy, interval and number of answers.

    Args:
        found: from `calibration`.
        file: the file; its folder is made.
        title: of the plot, such as the model's name.
        lowest: where the axes begin: .5 for pairs.
        unit: what is counted, for the labels.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 5.8), layout="constrained")
    axis, below = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    axis.plot([lowest, 1], [lowest, 1], color="gray", linewidth=0.8, linestyle="--", label="calibrated")
    filled = found["bins"]
    middles = [(each["from"] + each["to"]) / 2 for each in filled]
    width = 0.9 * (filled[0]["to"] - filled[0]["from"])
    axis.bar(middles, [each["accuracy"] for each in filled], width=width, alpha=0.3)
    errors = [[abs(each["accuracy"] - each["interval"][i]) for each in filled] for i in (0, 1)]
    x, y = ([each[name] for each in filled] for name in ("confidence", "accuracy"))
    axis.errorbar(x, y, yerr=errors, marker="o", capsize=3, label="found (95 %)")
    if after := found["after_temperature"]:
        x, y = ([each[name] for each in after["bins"]] for name in ("confidence", "accuracy"))
        label = f"at temperature {found['temperature']:.2g}: ECE {after['ece']:.3f}"
        axis.plot(x, y, marker="s", linestyle=":", color="tab:green", label=label)
    axis.set_xlim(lowest, 1)
    axis.set_ylim(min(lowest, *(each["interval"][0] for each in filled)) - 0.02, 1.02)
    axis.set_ylabel(f"share of {unit} that are right")
    axis.legend(loc="lower right", fontsize="small")
    low, high = found["intervals"]["ece"]
    ece = f"ECE {found['ece']:.3f} ({low:.3f} to {high:.3f}), ACE {found['ace']:.3f}, MCE {found['mce']:.3f}"
    word = "" if found["verdict"] == "neither" else f", {found['verdict']}"
    axis.set_title(f"{title}\n{found['n']} {unit}, accuracy {found['accuracy']:.3f}{word}\n{ece}", fontsize="small")
    bars = below.bar(middles, [each["n"] for each in filled], width=width, color="gray")
    below.bar_label(bars, fontsize="small")
    below.margins(y=0.3)
    below.set_ylabel(unit)
    below.set_xlabel("confidence")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)


def _figures(p: Floats, y: Floats, members: Labels, *, bins: int, resamples: int, seed: int) -> dict[str, Any]:
    """accuracy to bins of `calibration`."""
    which = _bin_of(p, bins)
    size = int(members.max()) + 1
    sums = np.zeros((3, size, bins))  # of each group and bin: answers, confidence, right ones
    for table, values in zip(sums, (np.ones_like(p), p, y), strict=True):
        np.add.at(table, (members, which), values)
    point = _summary(sums.sum(axis=1)[:, None])[:, 0]
    generator = np.random.default_rng(seed)
    drawn = np.concatenate([_summary(each) for each in _resampled(sums, generator, resamples)], axis=1)  # [6, R]
    drawn[3:] = np.clip(drawn[3:] - drawn[3:].mean(axis=1, keepdims=True) + point[3:, None], 0, 1)
    tail = (100 - COVERAGE) / 2
    intervals = np.percentile(drawn, [tail, 100 - tail], axis=1).T.tolist()
    names = ("accuracy", "confidence", "gap", *ERRORS)
    lucky = np.stack(
        [np.bincount(which, weights=generator.random(len(p)) < p, minlength=bins) for _ in range(200)]
    ).astype(np.float64)
    count, total = (
        np.bincount(which, minlength=bins).astype(np.float64)[None],
        np.bincount(which, weights=p, minlength=bins)[None],
    )
    by_chance = _errors(np.broadcast_to(count, lucky.shape), np.broadcast_to(total, lucky.shape), lucky)[0]
    low, high = intervals[2]
    return {
        **dict(zip(names, point.tolist(), strict=True)),
        "intervals": dict(zip(names, intervals, strict=True)),
        "ece_if_calibrated": {
            "mean": float(by_chance.mean()),
            "percentile_95": float(np.percentile(by_chance, 95)),
        },
        "verdict": "overconfident" if low > 0 else "underconfident" if high < 0 else "neither",
        "bins": [
            {
                "from": i / bins,
                "to": (i + 1) / bins,
                "n": int(n),
                "confidence": float(total[0, i] / n),
                "accuracy": float(right / n),
                "interval": [*wilson(float(right), float(n))],
            }
            for i, (n, right) in enumerate(zip(count[0], sums[2].sum(axis=0), strict=True))
            if n
        ],
    }


def _resampled(sums: Floats, generator: np.random.Generator, resamples: int) -> list[Floats]:
    """Sums [3, R, bins] of groups [3, groups, bins] drawn with replacement, some resamples at a time."""
    size, bins = sums.shape[1:]
    flat = sums.transpose(1, 0, 2).reshape(size, 3 * bins)
    found = []
    at_once = max(1, 4_000_000 // size)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = generator.integers(size, size=(rows, size)) + size * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size).astype(np.float64)
        found.append((times @ flat).reshape(rows, 3, bins).transpose(1, 0, 2))
    return found


def _summary(sums: Floats) -> Floats:
    """accuracy, confidence, gap, ECE, ACE and MCE [6, R] of sums [3, R, bins]."""
    count, p, y = sums
    whole = count.sum(axis=1)
    accuracy, confidence = y.sum(axis=1) / whole, p.sum(axis=1) / whole
    return np.concatenate([np.stack([accuracy, confidence, confidence - accuracy]), _errors(count, p, y)])


def _errors(count: Floats, p: Floats, y: Floats) -> Floats:
    """ECE, ACE and MCE [3, R] of counts and sums of confidence and of right answers, [R, bins] each."""
    gap = np.abs(p - y) / np.maximum(count, 1)
    filled = count > 0
    return np.stack(
        [
            (count * gap).sum(axis=1) / count.sum(axis=1),
            (gap * filled).sum(axis=1) / filled.sum(axis=1),
            gap.max(axis=1),
        ]
    )


def _crossed(at: Rescale, y: Floats, members: Labels) -> Floats:
    """Confidences [N] at the temperatures that were fitted to the other half of the groups."""
    found = np.asarray(at(1.0), dtype=np.float64).ravel()
    first = members % 2 == 0
    for half in (first, ~first):
        temperature = fit_temperature(lambda t, other=~half: np.asarray(at(t)).ravel()[other], y[~half])  # type: ignore[misc]
        if temperature is not None:
            found = np.where(half, np.asarray(at(temperature)).ravel(), found)
    return found


def _log_odds(p: Floats) -> Rescale:
    clipped = np.clip(p, 1e-12, 1 - 1e-12)
    odds = np.log(clipped) - np.log1p(-clipped)
    return lambda temperature: _sigmoid(odds / temperature)


def _sigmoid(x: Floats) -> Floats:
    return np.exp(-np.logaddexp(0, -x))


def _bin_of(p: Floats, bins: int) -> Labels:
    return np.minimum((p * bins).astype(np.int64), bins - 1)


def _checked(confidence: ArrayLike, correct: ArrayLike) -> tuple[Floats, Floats]:
    p, y = (np.asarray(each, dtype=np.float64).ravel() for each in (confidence, correct))
    if p.shape != y.shape or not len(p):
        raise ValueError(f"{len(p)} probabilities and {len(y)} labels: need as many of each, and at least one")
    if not (((p >= 0) & (p <= 1)).all() and ((y >= 0) & (y <= 1)).all()):
        raise ValueError("a probability or a label is outside [0, 1]")
    return p, y

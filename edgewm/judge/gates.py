"""What must hold, as data; each gate answers True, False or None (not enough evidence).

A preset says how far each gate may go, and of what share of all contexts a verdict may know nothing. The share gives
the number of contexts: the worst of n independent ones lies above all but that share of them with 95 % confidence.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from .. import statistics
from ..errors import EdgewmError
from ..options import PRESETS

Array = np.ndarray

RANK = (0.998, 0.99, 0.95)  # least rank correlation of candidate costs, by preset
UNSEEN = (0.02, 0.05, 0.10)  # share of all contexts that may be worse than the worst one looked at, by preset
MARGIN = (0.03, 0.10, 0.20)  # of success in closed loop, by preset
DISCORDANCE = 0.15  # share of pairs in which one model succeeds and the other does not, as episodes are counted for

# An error that is independent of what it disturbs, of this share of its spread, leaves a correlation of RANK.
ERROR = tuple(math.sqrt(1 / rank**2 - 1) for rank in RANK)
# Independent errors add in squares, so the same limit for a square, or for explained variance, is this.
SQUARED = tuple(error**2 for error in ERROR)


@dataclass(frozen=True)
class Gate:
    """`value` may not pass the preset's limit: `at_least` or `at_most`."""

    name: str
    limits: tuple[float, float, float]  # of the first PRESETS, which differ in all of them
    direction: str
    meaning: str


GATES: Mapping[str, Gate] = {
    g.name: g
    for g in (
        Gate("spearman_min", RANK, "at_least",
             "rank correlation of candidate costs with the full model's, in the worst context"),
        Gate("elite_overlap", (0.98, 0.95, 0.90), "at_least",
             "share of the planner's elites that both models choose from the same candidates, mean over contexts"),
        Gate("regret", (0.005, 0.01, 0.05), "at_most",
             "what the compressed model's plan costs under the full model above the full model's own plan, as a share "
             "of what planning gains over a candidate drawn blindly"),
        Gate("search_regret", (0.005, 0.01, 0.05), "at_most",
             "what the bundle's plan costs under the full model above one of the full model's own search, where it "
             "is another, as a share of what that gains over a candidate drawn blindly"),
        Gate("cost_error", ERROR, "at_most",
             "rms error of candidate costs over their spread in that context, mean over contexts"),
        Gate("first_action_ratio", (0.25, 0.5, 0.8), "at_most",
             "distance of first actions on the same noise, over the full model's own distance on other noise"),
        Gate("drift", ERROR, "at_most",
             "rms difference of imagined latents at the planner's horizon over the spread of latents"),
        Gate("own_plans", (0.0, 0.0, 0.0), "at_most",
             "share of plans that come out otherwise when the bundle draws its own noise, as on a robot, than when the "
             "same noise is handed to it"),
        Gate("exact_costs", (1.0, 1.0, 1.0), "at_most",
             "error of candidate costs against the full model in float64, over what rounding allows: the full model's "
             "own error in float32, times the longest sum; of bundles that hold everything in float32"),
        Gate("probe_loss", SQUARED, "at_most",
             "explained variance (R2) of the world's state, read linearly from a latent, that compression loses; one "
             "probe for each model, held-out frames"),
        Gate("imagined_probe_loss", SQUARED, "at_most",
             "the same read from latents imagined up to the planner's horizon"),
        Gate("surprise_loss", (0.01, 0.02, 0.05), "at_most",
             "AUROC lost in telling impossible clips from possible ones by surprise, the distance between the latent "
             "predicted and the one seen"),
        Gate("prefix_causality", (0.0, 0.0, 0.0), "at_most",
             "largest change of any latent when only later actions change, and other candidates beside it"),
        Gate("action_effect", ERROR, "at_most",
             "rms error of what another sequence of actions changes at the planner's horizon, over what it changes"),
        Gate("counterfactual_added", SQUARED, "at_most",
             "squared error of that change against the real one, above the full model's own, over its square"),
        Gate("recoverability_loss", SQUARED, "at_most",
             "explained variance (out-of-fold R2) of an action, summed over its block, read linearly from the latents "
             "before and after it, that compression loses"),
        Gate("future_error_added", SQUARED, "at_most",
             "squared error against real futures at the planner's horizon above the full model's own, over the "
             "variance of latents"),
        Gate("self_consistency", SQUARED, "at_most",
             "what the scorer asks of a candidate for the very latent that the predictor, step by step, says it leads "
             "to, over what it asks for the latent it began with (medians)"),
        Gate("horizon_kept", (0.98, 0.95, 0.85), "at_least",
             "steps until imagined latents explain less than half of what comes, over the full model's"),
        Gate("prefix_gap_added", SQUARED, "at_most",
             "squared gap between imagining in one go and going on from a latent imagined half way, above the full "
             "model's own, over the variance of latents"),
        Gate("blackout_added", SQUARED, "at_most",
             "squared error of what is expected when the camera comes back, above the full model's own, over the "
             "variance of latents"),
        # The full model is less sure of its own ranking there.
        Gate("shifted_rank", (0.99, 0.95, 0.90), "at_least",
             "rank correlation of candidate costs with the full model's, in the worst context of a shifted scene"),
        Gate("shifted_regret", (0.005, 0.01, 0.05), "at_most",
             "regret in shifted scenes"),
        Gate("shifted_error_added", SQUARED, "at_most",
             "squared error against real futures of shifted scenes above the full model's own, over the variance of "
             "latents and the full model's own"),
        Gate("closed_loop_loss", MARGIN, "at_most",
             "successes lost in closed loop, per episode; non-inferiority with its margin as the limit"),
        Gate("shifted_loss", MARGIN, "at_most",
             "successes lost in closed loop in shifted scenes; non-inferiority with its margin as the limit"),
        Gate("late_loss", MARGIN, "at_most",
             "successes lost where the compressed model's actions come as late as was measured and the full model's "
             "at once; non-inferiority with its margin as the limit"),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Preset:
    """`limits` by gate; `unseen` is the share of contexts that may be worse than the worst one looked at."""

    name: str
    limits: Mapping[str, float]
    unseen: float

    @property
    def contexts(self) -> int:
        """How many independent contexts that claim takes, with 95 % confidence."""
        return statistics.samples_needed(1 - self.unseen)

    @property
    def episodes(self) -> int:
        """Pairs of closed-loop episodes at most: twice what a test that looks once needs for models that are equal."""
        return math.ceil(2 * statistics.pairs_needed(DISCORDANCE, self.limits["closed_loop_loss"]))


STRICT, USUAL, EXPLORE = (
    Preset(name, MappingProxyType({g.name: g.limits[i] for g in GATES.values()}), UNSEEN[i])
    for i, name in enumerate(PRESETS[: len(UNSEEN)])
)
# A smaller model need not rank all that a planner may look at alike; its plans must be as good.
STUDENT_RANK = 0.9
STUDENT_ERROR = math.sqrt(1 / STUDENT_RANK**2 - 1)
STUDENT = {
    "spearman_min": STUDENT_RANK, "elite_overlap": 0.7, "regret": 0.05, "search_regret": 0.05,
    "cost_error": STUDENT_ERROR, "drift": STUDENT_ERROR, "closed_loop_loss": 0.05,
}  # fmt: skip
NAMED: Mapping[str, Preset] = {
    **{preset.name: preset for preset in (STRICT, USUAL, EXPLORE)},
    "student": Preset("student", MappingProxyType({**EXPLORE.limits, **STUDENT}), USUAL.unseen),
}
DEFAULT = USUAL


def preset_of(given: str) -> Preset:
    """A named preset, or one's own from a JSON file: `{"base": "default", "limits": {"regret": 0.02}}`.

    EdgewmError for an unknown name, base, key or gate, for a limit that is no number, or a margin of success outside
    of 0 to 1, and for a file that is called as a named preset is.
    """
    if given in NAMED:
        return NAMED[given]
    path = Path(given)
    if not path.is_file():
        raise EdgewmError(f"no preset {given!r}", "--preset", f"use {', '.join(PRESETS)}, or a JSON file")
    fix = 'write {"base": "default", "limits": {"regret": 0.02}}'
    if path.stem in NAMED:
        raise EdgewmError(f"a preset of one's own would be told as {path.stem!r}", given, "give the file another name")
    try:
        found = json.loads(path.read_text())
        base, limits = found.get("base", DEFAULT.name), dict(found.get("limits", {}))
    except (ValueError, AttributeError, TypeError) as fault:
        raise EdgewmError(f"not a preset: {fault}", given, fix) from fault
    if strange := sorted(set(found) - {"base", "limits"}):
        raise EdgewmError(f"a preset has no {strange[0]!r}", given, fix)
    if not isinstance(base, str) or base not in NAMED:
        raise EdgewmError(f"no preset {base!r} to begin with", given, f"name one of {', '.join(PRESETS)} as base")
    for name, limit in limits.items():
        if name not in GATES:
            raise EdgewmError(f"no gate {name!r}", given, f"name one of {', '.join(GATES)}")
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not math.isfinite(limit):
            raise EdgewmError(f"the limit of {name} is {limit!r}", given, "give a number")
        if GATES[name].limits == MARGIN and not 0 < limit < 1:
            raise EdgewmError(f"the margin {name} is {limit!r}", given, "give a share of episodes, above 0 and below 1")
    return replace(NAMED[base], name=path.stem, limits=MappingProxyType({**NAMED[base].limits, **limits}))


def holds(gate: Gate, value: float, limit: float) -> bool:
    """A value that is not a number never holds."""
    return bool(value >= limit if gate.direction == "at_least" else value <= limit)


def judged(
    name: str, value: float, n: int, interval: Sequence[float | None] | None = None, preset: Preset = DEFAULT
) -> dict[str, Any]:
    """One row of the verdict. With one-sided bounds, the one towards the limit must hold too, or nothing is decided."""
    gate, limit = GATES[name], preset.limits[name]
    passed: bool | None = holds(gate, value, limit)
    note = None
    if n < preset.contexts:
        passed, note = None, f"{n} independent samples, {preset.contexts} needed"
    elif passed and interval is not None:
        worse = interval[0] if gate.direction == "at_least" else interval[1]
        if worse is None or not holds(gate, worse, limit):
            passed, note = None, _undecided(value, worse, limit, n)
    return row(gate, value, limit, passed, n, interval, note)


def _undecided(value: float, worse: float | None, limit: float, n: int) -> str:
    """Why, and how many samples would decide: a bound comes closer with the root of their number."""
    if worse is None or value == limit:
        return f"the 95 % bound is not within the limit with {n} samples"
    enough = math.ceil(n * ((worse - value) / (limit - value)) ** 2)
    return f"the 95 % bound is {worse:.3g}: about {enough} samples could decide (there are {n})"


def decided(
    name: str, value: float, passed: bool | None, n: int, note: str | None = None, preset: Preset = DEFAULT
) -> dict[str, Any]:
    """A row whose decision came from a test of its own, with the preset's limit as its margin."""
    return {**row(GATES[name], value, preset.limits[name], passed, n, None, note), "decided": True}


def under(preset: Preset, found: Mapping[str, Any]) -> dict[str, Any]:
    """What `judged` says of the row's evidence under another preset; a row of `decided` stays as it is."""
    if found["decided"]:
        return dict(found)
    value = math.nan if found["value"] is None else found["value"]
    return judged(found["name"], value, found["samples"], found["bounds_95"], preset)


def row(
    gate: Gate, value: float, limit: float, passed: bool | None, n: int, interval: Sequence[float | None] | None,
    note: str | None,
) -> dict[str, Any]:  # fmt: skip
    return {
        "name": gate.name,
        "value": finite(value),
        "limit": limit,
        "direction": gate.direction,
        "passed": passed,
        "samples": n,
        "bounds_95": None if interval is None else [finite(v) for v in interval],
        "note": note,
        "meaning": gate.meaning,
        "decided": False,
    }


def finite(value: float | None) -> float | None:
    """JSON has no NaN: null stands for it."""
    return float(value) + 0.0 if value is not None and math.isfinite(value) else None  # and no -0


def verdict(rows: Sequence[Mapping[str, Any]]) -> bool | None:
    """False if any gate failed; else None if any is undecided or there is none; else True."""
    states = [r["passed"] for r in rows]
    if False in states:
        return False
    return True if states and None not in states else None


def mean_interval(samples: Array) -> tuple[float, float, float]:
    """Mean over contexts and its two one-sided 95 % bounds (90 % two-sided bootstrap)."""
    return ratio_interval(samples, np.ones(len(samples)))


def ratio_interval(above: Array, below: Array) -> tuple[float, float, float]:
    """Ratio of sums over contexts and its two one-sided 95 % bounds; each context is one unit of the bootstrap."""
    pairs = np.stack([above, below], 1).astype(np.float64)

    def ratio(p: Array) -> float:
        total = p.sum(0)
        return float(total[0] / total[1]) if total[1] > 0 else math.nan

    low, high = statistics.bootstrap(pairs, ratio, confidence=0.90)
    return ratio(pairs), low, high

"""Planner settings: which belong to which kind, and what makes no plan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import EdgewmError
from ..program import Planner

MAX_HORIZON = 64  # model steps a rollout is unrolled into: kernels and compile time grow with it
MAX_CANDIDATES_BYTES = 1 << 30  # of one iteration's candidates, float32
# kind -> the settings that it alone reads
KINDS: Mapping[str, tuple[str, ...]] = {
    "cem": (), "icem": ("noise_beta", "alpha", "n_elite_keep", "return_mean"), "mppi": ("temperature",),
}  # fmt: skip
OBJECTIVES = ("final", "path")
WHERE = "planner settings"


def settled(base: Planner, given: Mapping[str, Any], where: str = WHERE) -> Planner:
    """`base` with what is given; EdgewmError for a setting that the kind does not read.

    A planner of another kind than the base's has the mean for its first candidate, as stable-worldmodel's solvers have,
    and one with a history plays one model action of each plan, unless `given` says otherwise.
    """
    kind = given.get("kind", base.kind)
    for other, names in KINDS.items():
        for name in names:
            if name in given and kind in KINDS and name not in KINDS[kind]:
                raise EdgewmError(f"{name} is no setting of {kind}", where, f"leave it out, or plan with {other}")
    first = {"first_candidate_is_mean": True} if kind != base.kind else {}
    merged = replace(base, **{**first, **given})
    if merged.history > 1 and "commit_steps" not in given:
        merged = replace(merged, commit_steps=merged.action_block)
    return merged


def check(planner: Planner, action_dim: int | None = None) -> None:
    """EdgewmError when the settings cannot make a plan; `action_dim` is a model action's, at least its block."""
    if planner.kind not in KINDS:
        raise EdgewmError(f"no planner of kind {planner.kind!r}", WHERE, f"use {', '.join(KINDS)}")
    for name in ("samples", "iterations", "elites", "horizon", "action_block", "commit_steps", "history"):
        if getattr(planner, name) < 1:
            raise EdgewmError(f"{name} is {getattr(planner, name)}", WHERE, f"give {name} of at least 1")
    if planner.horizon > MAX_HORIZON:
        raise EdgewmError(
            f"a horizon of {planner.horizon} model actions", WHERE, f"plan at most {MAX_HORIZON}, and plan more often"
        )
    held = planner.samples * planner.horizon * (action_dim or planner.action_block) * 4
    if held > MAX_CANDIDATES_BYTES:
        raise EdgewmError(
            f"{planner.samples:,} samples are {held / 2**30:.1f} GiB of candidates", WHERE,
            f"take fewer: they may fill {MAX_CANDIDATES_BYTES >> 30} GiB",
        )  # fmt: skip
    if planner.elites > planner.samples:
        raise EdgewmError(
            f"{planner.elites} elites of {planner.samples} samples", WHERE, "ask for at most as many elites as samples"
        )
    if planner.objective not in OBJECTIVES:
        raise EdgewmError(f"no objective {planner.objective!r}", WHERE, f"use {' or '.join(OBJECTIVES)}")
    if not (math.isfinite(planner.var_scale) and planner.var_scale > 0):
        raise EdgewmError(f"var_scale is {planner.var_scale}", WHERE, "give a positive number")
    if planner.low is not None and planner.high is not None and not planner.low < planner.high:
        raise EdgewmError(f"bounds are [{planner.low}, {planner.high}]", WHERE, "give low below high")
    if planner.proposal and planner.warm_start:
        raise EdgewmError(
            "a warm start with a proposal: a search begins at one of them", WHERE,
            "give --no-warm-start or --no-proposal",
        )  # fmt: skip
    {"cem": _check_refit, "icem": _check_icem, "mppi": _check_mppi}[planner.kind](planner)
    _check_commitment(planner)


def _check_refit(planner: Planner) -> None:
    if planner.unbiased_std and planner.elites < 2 and planner.samples > 1:
        raise EdgewmError("an unbiased deviation of 1 elite", WHERE, "take 2 elites or more")


def has_mean_first(planner: Planner) -> bool:
    """Whether the first candidate of an iteration is the mean that it is drawn around."""
    return planner.first_candidate_is_mean or planner.proposal


def _check_icem(planner: Planner) -> None:
    _check_refit(planner)
    if not (math.isfinite(planner.noise_beta) and planner.noise_beta >= 0):
        raise EdgewmError(f"noise_beta is {planner.noise_beta}", WHERE, "give 0 (white noise) or more")
    if not 0 <= planner.alpha < 1:
        raise EdgewmError(f"alpha is {planner.alpha}", WHERE, "give the share of the last mean that stays: 0, below 1")
    if planner.n_elite_keep < 0:
        raise EdgewmError(f"n_elite_keep is {planner.n_elite_keep}", WHERE, "keep 0 elites or more")
    if has_mean_first(planner) + kept_elites(planner) > planner.samples:
        raise EdgewmError(
            f"the mean and {kept_elites(planner)} kept elites of {planner.samples} samples", WHERE,
            "take more samples, or a smaller n_elite_keep",
        )  # fmt: skip


def _check_mppi(planner: Planner) -> None:
    if not (math.isfinite(planner.temperature) and planner.temperature > 0):
        raise EdgewmError(f"temperature is {planner.temperature}", WHERE, "give a positive number")


def _check_commitment(planner: Planner) -> None:
    block, steps = planner.action_block, planner.commit_steps
    if committed_actions(planner) > planner.horizon:
        raise EdgewmError(
            f"{steps} committed periods exceed the plan of {planner.horizon * block}", WHERE,
            "commit at most horizon * action_block periods",
        )  # fmt: skip
    if planner.history > 1 and steps != block:
        raise EdgewmError(
            f"a history of {planner.history} frames with {steps} committed periods", WHERE,
            f"frames are one model action apart: commit_steps must be the action_block, {block}",
        )  # fmt: skip
    if planner.roll_committed and steps % block:
        raise EdgewmError(
            f"roll_committed with {steps} committed periods, which are no whole model actions", WHERE,
            f"give commit_steps a multiple of the action_block, {block}",
        )  # fmt: skip


def committed_actions(planner: Planner) -> int:
    """Model actions played of each plan; a block begun counts as played."""
    return -(-planner.commit_steps // planner.action_block)


def kept_elites(planner: Planner) -> int:
    """Elites of one iteration that are candidates of the next."""
    return min(planner.n_elite_keep, planner.elites) if planner.kind == "icem" else 0

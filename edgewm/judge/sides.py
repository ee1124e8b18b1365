"""The two models behind one set of functions: `upstream` (torch) and `compiled` (a bundle); and the planner for both.

Observations and goals are `{observation port: array}` as the robot hands them over (a goal is an observation one
wants); latents are (D,), candidates (S, H, A) and plans (H, A) in model actions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..ops import NUMPY
from ..program import Planner, Port

Array = np.ndarray
Observation = Mapping[str, Array]


@dataclass(frozen=True)
class Side:
    """One model under judgement.

    `encode(observation)` -> latent (D,); `predict(z, actions)` with z (B, T, D), actions (B, T, A) and T up to `window`
    -> the latent after the last one, (B, D); `score(z, goal, candidates)` -> cost (S,);
    `plan(observation, goal, noise)` with noise (I, S, H, A) -> actions (H, A).
    """

    encode: Callable[[Observation], Array]
    predict: Callable[[Array, Array], Array]
    score: Callable[[Array, Array, Array], Array]
    plan: Callable[[Observation, Observation, Array], Array]
    window: int


def rollout(side: Side, z: Array, actions: Array) -> Array:
    """Latents (B, H + 1, D) imagined from `z` (D,) under actions (B, H, A), each from the last `window` ones."""
    batch, horizon, _ = actions.shape
    latents = np.empty((batch, horizon + 1, len(z)), np.float64)
    latents[:, 0] = z
    for t in range(1, horizon + 1):
        seen = slice(max(0, t - side.window), t)
        latents[:, t] = side.predict(latents[:, seen], actions[:, seen])
    return latents


class Search(NamedTuple):
    """All that one run of the planner looked at: candidates (I, S, H, A), costs (I, S), elites (I, k), mean (H, A)."""

    candidates: Array
    costs: Array
    elites: Array
    mean: Array


def elites_of(cost: Array, k: int) -> Array:
    """Indices of the k smallest, ascending; ties go to the lower index, what is not a number is never chosen first."""
    return np.sort(np.argsort(np.where(np.isnan(cost), np.inf, cost), kind="stable")[:k])


def search(score: Callable[[Array], Array], planner: Planner, noise: Array) -> Search:
    """The cross-entropy method of `edgewm.planner`, on given noise (I, S, H, A), in float64 around any cost."""
    mean = np.zeros(noise.shape[2:])
    std = np.full(noise.shape[2:], planner.var_scale)
    tried, costs, chosen = [], [], []
    for z in noise.astype(np.float64):
        candidates = mean + std * z
        if planner.first_candidate_is_mean:
            candidates[0] = mean
        candidates = np.clip(candidates, planner.low, planner.high)
        cost = score(candidates)
        elites = elites_of(cost, planner.elites)
        mean = candidates[elites].mean(0)
        std = candidates[elites].std(0, ddof=int(planner.unbiased_std))
        tried.append(candidates)
        costs.append(cost)
        chosen.append(elites)
    return Search(np.stack(tried), np.stack(costs), np.stack(chosen), mean)


def upstream(model: Any, planner: Planner, dtype: str = "float32") -> Side:
    """The full model, an `edgewm.models.Model`, run by torch itself.

    `dtype` is what it computes in: float32 (what its users run) or float64 (to measure rounding against).
    """
    import torch

    kind = getattr(torch, dtype)
    module = copy.deepcopy(model.torch).to(kind).eval()
    ports = model.ports_of("observation")

    def tensor(x: Array) -> Any:
        return torch.from_numpy(np.ascontiguousarray(x)).to(kind)

    @torch.inference_mode()
    def encode(observation: Observation) -> Array:
        return model.encode(module, *(torch.from_numpy(as_port(observation[p.name], p)) for p in ports))[0].numpy()

    @torch.inference_mode()
    def predict(z: Array, actions: Array) -> Array:
        return model.predict(module, tensor(z), tensor(actions)).numpy()

    @torch.inference_mode()
    def score(z: Array, goal: Array, candidates: Array) -> Array:
        return model.score(module, tensor(z[None]), tensor(goal[None]), tensor(candidates)).numpy()

    def plan(observation: Observation, goal: Observation, noise: Array) -> Array:
        z, target = encode(observation), encode(goal)
        return search(lambda candidates: score(z, target, candidates), planner, noise).mean

    return Side(encode, predict, score, plan, model.window)


def compiled(runtime: Any, model: Any, planner: Planner) -> Side:
    """The bundle opened as `runtime` (an `edgewm.Runtime`), asked through its entries; `model` says what ports mean."""
    observations, goals = model.ports_of("observation"), model.ports_of("goal")

    def encode(observation: Observation) -> Array:
        return runtime.run_entry("encode", **named(observations, observation, observations))["z"][0]

    def predict(z: Array, actions: Array) -> Array:
        length = z.shape[1]
        entry = "predict" if length == model.window else f"predict_{length}"
        parts = [
            runtime.run_entry(entry, z=z_part, actions=a_part)["z_next"]
            for z_part, a_part in zip(_filled(z, planner.samples), _filled(actions, planner.samples), strict=True)
        ]
        return np.concatenate(parts)[: len(z)]

    def score(z: Array, goal: Array, candidates: Array) -> Array:
        parts = [
            runtime.run_entry("score", z=_f32(z[None]), goal=_f32(goal[None]), candidates=part)["cost"]
            for part in _filled(candidates, planner.samples)
        ]
        return np.concatenate(parts)[: len(candidates)]

    def plan(observation: Observation, goal: Observation, noise: Array) -> Array:
        given = named(observations, observation, observations) | named(goals, goal, observations)
        warm = np.zeros(noise.shape[2:], np.float32)
        return runtime.run_entry("plan_with_noise", **given, noise=_f32(noise), warm_mean=warm)["actions"]

    return Side(encode, predict, score, plan, model.window)


def as_port(value: Array, port: Port) -> Array:
    """`value` in the shape and dtype that the port declares."""
    return np.ascontiguousarray(value, NUMPY[port.dtype]).reshape(port.shape)


def named(ports: Sequence[Port], values: Observation, observations: Sequence[Port]) -> dict[str, Array]:
    """`values`, keyed by observation port, as the arguments for `ports`, which answer those one by one."""
    return {p.name: as_port(values[o.name], p) for p, o in zip(ports, observations, strict=True)}


def _filled(rows: Array, size: int) -> list[Array]:
    """`rows` in float32 batches of exactly `size`, as entries are compiled for; the last one repeats its last row."""
    index = np.minimum(np.arange(-(-len(rows) // size) * size), len(rows) - 1)
    return [_f32(rows[i]) for i in index.reshape(-1, size)]


def _f32(x: Array) -> Array:
    return np.ascontiguousarray(x, np.float32)

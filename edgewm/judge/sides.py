"""The two models behind one set of functions: `upstream` (torch) and `compiled` (a bundle); and the planner for both.

Observations and goals are `{observation port: array}` as the robot hands them over (a goal is an observation one
wants); latents are (D,), candidates (S, H, A) and plans (H, A) in model actions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from ..ops import NUMPY
from ..planner import committed_actions, has_mean_first, kept_elites, state_ports
from ..program import Planner, Port

Array = np.ndarray
Observation = Mapping[str, Array]
LEAST_DEVIATION = 1e-8  # of iCEM's noise along the horizon


@dataclass(frozen=True)
class Side:
    """One model under judgement.

    `encode(observation)` -> latent (D,); `predict(z, actions)` with z (B, T, D), actions (B, T, A) and T up to `window`
    -> the latent after the last one, (B, D); `score(z, goal, candidates)` -> cost (S,), from one latent, which then
    stands for all of the planner's history, or from frames (T, D), with the actions between them before each candidate
    (S, T - 1 + H, A); `plan(observation, goal, noise)` with noise (I, S, H, A) -> actions (H, A): a first plan;
    `propose(z, goal)`, of a model that has a proposal and a planner that begins there, -> its mean, within bounds, and
    std (H, A).
    """

    encode: Callable[[Observation], Array]
    predict: Callable[[Array, Array], Array]
    score: Callable[[Array, Array, Array], Array]
    plan: Callable[[Observation, Observation, Array], Array]
    window: int
    propose: Callable[[Array, Array], tuple[Array, Array]] | None = None


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
    """All that one run of the planner looked at: candidates (I, S, H, A), costs (I, S), elites (I, k); and the plan it
    chose, `mean` (H, A)."""

    candidates: Array
    costs: Array
    elites: Array
    mean: Array


def elites_of(cost: Array, k: int) -> Array:
    """Indices of the k smallest, ascending; ties go to the lower index, what is not a number is never chosen first."""
    return np.sort(np.argsort(np.where(np.isnan(cost), np.inf, cost), kind="stable")[:k])


def search(
    score: Callable[[Array], Array], planner: Planner, noise: Array, warm: Array | None = None, std: Array | None = None
) -> Search:  # fmt: skip
    """The planner's method on given noise (I, S, H, A), in float64 around any cost; from zero or from `warm` (H, A),
    with deviation `std` (H, A) or the planner's."""
    mean = np.zeros(noise.shape[2:]) if warm is None else np.asarray(warm, np.float64)
    std = np.full(noise.shape[2:], planner.var_scale) if std is None else np.asarray(std, np.float64)
    first, count = int(has_mean_first(planner)), kept_elites(planner)
    tried, costs, chosen = [], [], []
    kept, best = np.empty((0, *mean.shape)), mean
    for white in noise.astype(np.float64):
        candidates = mean + std * (coloured(planner, white) if planner.kind == "icem" else white)
        if has_mean_first(planner):
            candidates[0] = mean
        candidates[first : first + len(kept)] = kept
        candidates = within_bounds(planner, candidates)
        cost = score(candidates)
        elites = elites_of(cost, planner.elites)
        ranked = elites[np.argsort(cost[elites], kind="stable")]
        mean, std = _refitted(planner, mean, std, candidates[elites], cost[elites])
        kept, best = candidates[ranked[:count]], candidates[ranked[0]]
        tried.append(candidates)
        costs.append(cost)
        chosen.append(elites)
    is_mean = planner.return_mean or planner.kind != "icem"
    return Search(np.stack(tried), np.stack(costs), np.stack(chosen), mean if is_mean else best)


def within_bounds(planner: Planner, actions: Array) -> Array:
    """Model actions within those of the planner's bounds that it has."""
    above = actions if planner.low is None else np.maximum(actions, planner.low)
    return above if planner.high is None else np.minimum(above, planner.high)


def start_of(side: Side, z: Array, goal: Array) -> tuple[Array, ...]:
    """Where the planner of a side begins its search, for `search`: mean and std; empty for one without a proposal."""
    return () if side.propose is None else side.propose(z, goal)


def blind_cost(side: Side, planner: Planner, z: Array, goal: Array, noise: Array) -> float:
    """Of the median candidate that is drawn without looking: the first iteration's of a search from zero."""
    once = replace(planner, iterations=1, proposal=False)
    return float(np.median(search(lambda candidates: side.score(z, goal, candidates), once, noise[:1]).costs))


def _refitted(planner: Planner, mean: Array, std: Array, elites: Array, cost: Array) -> tuple[Array, Array]:
    """Mean and deviation for the next iteration, from elites (k, H, A) and their costs (k,)."""
    if planner.kind == "mppi":
        weights = np.exp(-(cost - cost.min()) / planner.temperature)
        return np.tensordot(weights / weights.sum(), elites, 1), std
    stays = planner.alpha if planner.kind == "icem" else 0.0
    spread = elites.std(0, ddof=min(int(planner.unbiased_std), len(elites) - 1))
    return stays * mean + (1 - stays) * elites.mean(0), stays * std + (1 - stays) * spread


def coloured(planner: Planner, white: Array) -> Array:
    """iCEM's noise: white (S, H, A) scaled by frequency along the horizon, then to unit deviation along it."""
    steps = white.shape[1]
    if steps == 1:
        return white
    frequencies = np.fft.rfftfreq(steps)
    frequencies[0] = frequencies[1]
    spectrum = np.fft.rfft(white, axis=1) * frequencies[:, None] ** (-planner.noise_beta / 2)
    mixed = np.fft.irfft(spectrum, steps, axis=1)
    return mixed / np.maximum(mixed.std(1, ddof=1, keepdims=True), LEAST_DEVIATION)


@dataclass
class Memory:
    """What a plan takes from the plans before it, as a bundle's state ports hold it; empty after a reset."""

    frames: list[Array] = field(default_factory=list)  # latents, oldest first
    actions: list[Array] = field(default_factory=list)  # the one played after each of them
    warm: Array | None = None
    chunk: Array | None = None

    def forget_frames(self) -> None:
        """The next observation is not one model action after the last."""
        self.frames, self.actions = [], []


def replan(
    side: Side, planner: Planner, observation: Observation, goal: Array, noise: Array, memory: Memory, begun: int = 0
) -> Array:
    """The plan (H, A) that follows on those in `memory`, which is brought up to date; `goal` is a latent.

    `begun` counts the control periods of the last plan that had begun when the observation was taken; 0: it is not
    being played, or the planner does not roll it.
    """
    z, width, older = side.encode(observation), noise.shape[-1], planner.history - 1
    latents = [*(memory.frames or [z] * older), z]
    between = memory.actions or [np.zeros(width)] * older
    start, past, played = latents, between, None
    if planner.roll_committed and begun:
        rows = memory.chunk.reshape(planner.horizon * planner.action_block, -1)
        place = np.arange(committed_actions(planner) * planner.action_block) + begun - 1
        coming = rows[np.minimum(place, len(rows) - 1)].reshape(-1, width)
        start, past, played = list(latents), [*between, *coming], coming[0]
        for t in range(len(latents), len(past) + 1):
            last = slice(max(0, t - side.window), t)
            start.append(side.predict(np.stack(start[last])[None], np.stack(past[last])[None])[0])
    context, shared = np.stack(start[-planner.history :]), np.array(past[len(past) - older :]).reshape(older, width)

    def cost(candidates: Array) -> Array:
        actions = np.concatenate([np.broadcast_to(shared, (len(candidates), older, width)), candidates], 1)
        return side.score(context if older else context[0], goal, actions)

    found = search(cost, planner, noise, *(start_of(side, context[-1], goal) or [memory.warm])).mean
    if older:
        memory.frames, memory.actions = latents[1:], [*between[1:], found[0] if played is None else played]
    if planner.warm_start:
        count = committed_actions(planner)
        memory.warm = np.concatenate([found[count:], np.zeros((count, width))])
    memory.chunk = found
    return found


def upstream(model: Any, planner: Planner, dtype: str = "float32") -> Side:
    """The full model, an `edgewm.models.Model`, run by torch itself, on the device where it is.

    `dtype` is what it computes in: float32 (what its users run) or float64 (to measure rounding against).
    """
    import torch

    kind, device = getattr(torch, dtype), model.device
    module = copy.deepcopy(model.torch).to(kind).eval()
    ports = model.ports_of("observation")

    def tensor(x: Array) -> Any:
        return torch.from_numpy(np.ascontiguousarray(x)).to(device, kind)

    @torch.inference_mode()
    def encode(observation: Observation) -> Array:
        seen = (torch.from_numpy(as_port(observation[p.name], p)).to(device) for p in ports)
        return model.encode(module, *(x.to(kind) if x.is_floating_point() else x for x in seen))[0].cpu().numpy()

    @torch.inference_mode()
    def predict(z: Array, actions: Array) -> Array:
        return model.predict(module, tensor(z), tensor(actions)).cpu().numpy()

    cost = model.scored(planner.objective)

    @torch.inference_mode()
    def score(z: Array, goal: Array, candidates: Array) -> Array:
        latents, actions = in_context(planner, z, candidates)
        return cost(module, tensor(latents), tensor(goal[None]), tensor(actions)).cpu().numpy()

    @torch.inference_mode()
    def proposed(z: Array, goal: Array) -> tuple[Array, Array]:
        mean = proposal(tensor(z[None]), tensor(goal[None]))[0].cpu().numpy()
        return np.clip(mean, planner.low, planner.high), proposal.std.cpu().numpy()

    proposal = copy.deepcopy(model.proposal).to(kind) if planner.proposal and model.proposal is not None else None
    propose = None if proposal is None else proposed

    def plan(observation: Observation, goal: Observation, noise: Array) -> Array:
        z, target = encode(observation), encode(goal)
        return search(lambda candidates: score(z, target, candidates), planner, noise, *start_of(made, z, target)).mean

    made = Side(encode, predict, score, plan, model.window, propose)
    return made


def window_of(runtime: Any) -> int:
    """The most latents that a bundle's predictor looks at: a student may look at fewer than its teacher."""
    return next(p.shape[1] for p in runtime.ports("predict") if p.name == "z")


def compiled(runtime: Any, model: Any, planner: Planner, window: int | None = None) -> Side:
    """The bundle opened as `runtime` (an `edgewm.Runtime`), asked through its entries; `model` says what ports mean,
    and, unless it is given, how many latents the predictor looks at."""
    window = window or model.window
    observations, goals = model.ports_of("observation"), model.ports_of("goal")
    unplanned = _reset_state(runtime, model, planner)

    def encode(observation: Observation) -> Array:
        return runtime.run_entry("encode", **named(observations, observation, observations))["z"][0]

    def predict(z: Array, actions: Array) -> Array:
        length = z.shape[1]
        entry = "predict" if length == window else f"predict_{length}"
        parts = [
            runtime.run_entry(entry, z=z_part, actions=a_part)["z_next"]
            for z_part, a_part in zip(_filled(z, planner.samples), _filled(actions, planner.samples), strict=True)
        ]
        return np.concatenate(parts)[: len(z)]

    def score(z: Array, goal: Array, candidates: Array) -> Array:
        latents, actions = in_context(planner, z, candidates)
        older = planner.history - 1
        given = {"z": _f32(latents), "goal": _f32(goal[None])}
        given |= {"past_actions": _f32(actions[0, :older])} if older else {}
        parts = [
            runtime.run_entry("score", **given, candidates=part)["cost"]
            for part in _filled(actions[:, older:], planner.samples)
        ]
        return np.concatenate(parts)[: len(candidates)]

    def plan(observation: Observation, goal: Observation, noise: Array) -> Array:
        given = named(observations, observation, observations) | named(goals, goal, observations)
        return runtime.run_entry("plan_with_noise", **given, **unplanned, noise=_f32(noise))["actions"]

    def propose(z: Array, goal: Array) -> tuple[Array, Array]:
        found = runtime.run_entry("propose", z=_f32(z[None]), goal=_f32(goal[None]))
        return np.clip(found["mean"], planner.low, planner.high), found["std"]

    return Side(encode, predict, score, plan, window, propose if planner.proposal else None)


def in_context(planner: Planner, z: Array, candidates: Array) -> tuple[Array, Array]:
    """Frames (history, D) and actions (S, history - 1 + H, A) of what `Side.score` is given."""
    if z.ndim == 2:
        return z, candidates
    padding = np.zeros((len(candidates), planner.history - 1, candidates.shape[2]))
    return np.repeat(z[None], planner.history, 0), np.concatenate([padding, candidates], 1)


def _reset_state(runtime: Any, model: Any, planner: Planner) -> dict[str, Array]:
    """What the state ports of `plan_with_noise` hold after a reset."""
    if planner.history == 1 and not planner.roll_committed and not planner.proposal:
        return {"warm_mean": np.zeros((planner.horizon, model.action_dim), np.float32)}
    read = {port.name for port in runtime.ports("plan_with_noise") if port.is_input}
    ports = state_ports(planner, model.latent_dim, model.action_dim)
    return {p.name: np.zeros(p.shape, NUMPY[p.dtype]) for p in ports if p.name in read}


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

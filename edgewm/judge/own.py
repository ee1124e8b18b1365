"""Is what the robot runs what was judged? The judge hands plans their noise; a robot's plan draws its own.

The entry `plan` must give, bit for bit, what `plan_with_noise` gives on the noise that its seed and counter stand for,
and count on.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..program import Planner
from .gates import DEFAULT, Preset, decided
from .noise import WORD, philox
from .sides import Observation, named
from .sources import Pairs

Array = np.ndarray
PLANS = 8


def run(
    runtime: Any, model: Any, planner: Planner, pairs: Pairs, seed: int, preset: Preset = DEFAULT
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Plans that differ, of as many as there are pairs (observation, goal), on seeds and counters of their own."""
    rng = np.random.default_rng([0x0F7, seed])
    seen = [_is_same(runtime, model, planner, o, g, int(rng.integers(0, 2**63)), i) for i, (o, g) in enumerate(pairs)]
    differing = seen.count(False) / len(seen) if seen else float("nan")
    passed = differing <= preset.limits["own_plans"] if seen else None
    row = decided("own_plans", differing, passed, len(seen), preset=preset)
    return {"own_plans": len(seen)}, [row]


def _is_same(
    runtime: Any, model: Any, planner: Planner, observation: Observation, goal: Observation, seed: int, plan: int
) -> bool:
    observations = model.ports_of("observation")
    given = named(observations, observation, observations) | named(model.ports_of("goal"), goal, observations)
    entry = {p.name: p for p in runtime.ports("plan") if p.is_input}
    kept = {n: np.zeros(p.shape, p.dtype) for n, p in entry.items() if n not in given and n not in DRAWS}
    drawn = {"seed": np.array([seed % WORD, seed // WORD], np.uint32), "plan_counter": np.array([plan], np.uint32)}
    own = runtime.run_entry("plan", **given, **kept, **drawn)
    noise = philox(planner, model.action_dim, seed, plan)
    handed = runtime.run_entry("plan_with_noise", **given, **kept, noise=noise)
    is_next = int(own["plan_counter"][0]) == plan + 1
    return is_next and np.array_equal(own["actions"], handed["actions"])


DRAWS = ("seed", "plan_counter")  # state ports that noise is drawn by

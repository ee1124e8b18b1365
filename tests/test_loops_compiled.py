"""Both models in the loop, the bundle through its C ABI: the same plans at the same time, however late they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("torch")

from edgewm.act import period_of
from edgewm.binding import Runtime
from edgewm.build import build
from edgewm.judge import latency
from edgewm.judge.latency import Policy
from edgewm.judge.noise import philox
from edgewm.judge.sides import upstream
from edgewm.manifest import Manifest, read_manifest
from edgewm.models import Model, load

SEED, PERIODS = 2**40 + 7, 14
FLOAT32_EPS = float(np.finfo(np.float32).eps)
SEARCH = {"samples": 32, "horizon": 4}
# name -> MODEL and what its planner carries from plan to plan
PROTOCOLS: dict[str, tuple[str, dict[str, Any]]] = {
    "from the observation": ("tiny_models:tiny", {"commit_steps": 2}),
    "rolled on": ("tiny_models:tiny", {"commit_steps": 2, "roll_committed": True}),
    "warm start": ("tiny_models:tiny", {"commit_steps": 2, "warm_start": True}),
    "a proposal": ("planning:proposing", {"commit_steps": 2, "first_candidate_is_mean": False}),
    "frames before": ("planning:remembering", {"history": 2}),
    "all of it": ("planning:remembering", {"history": 2, "roll_committed": True, "warm_start": True}),
}  # fmt: skip


class Pair(NamedTuple):
    """An fp32 bundle and the model it was built from."""

    bundle: Path
    model: Model


@pytest.fixture(scope="module", params=PROTOCOLS.values(), ids=PROTOCOLS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    name, carried = request.param
    out = tmp_path_factory.mktemp("loops") / "out"
    build(name, planner={**SEARCH, **carried}, out=out)
    return Pair(out, load(name))


def states(period: int) -> dict[str, np.ndarray]:
    return {"state": np.random.default_rng(period).normal(0, 1, (1, 4)).astype(np.float32)}


def of_full(pair: Pair, manifest: Manifest, late: int) -> Policy:
    """The full model under the manifest's planner, on the noise that the bundle's plans draw."""
    planner, side = manifest.planner, upstream(pair.model, manifest.planner)
    goal = {"state": np.zeros((1, 4), np.float32)}
    parts = latency.of_model(side, manifest, goal, lambda plan: philox(planner, pair.model.action_dim, SEED, plan))
    return latency.timed(parts, planner, lambda: late)


def acted(policy: Policy) -> np.ndarray:
    return np.array([policy(states(period), period) for period in range(PERIODS)])


@pytest.mark.parametrize("late", [0, 1, 3])
def test_the_bundle_and_the_full_model_play_the_same_episode(pair: Pair, late: int) -> None:
    manifest, clock = read_manifest(pair.bundle), [0]
    planner, goal = manifest.planner, {"state": np.zeros((1, 4), np.float32)}
    with Runtime(pair.bundle, period_ns=period_of(manifest), clock=lambda: clock[0]) as runtime:
        bundle = acted(latency.timed(latency.of_bundle(runtime, clock, manifest, goal, SEED), planner, lambda: late))
    full = acted(of_full(pair, manifest, late))
    # Means of the same elites: sums of as many numbers within 1, after a few iterations of that in each plan.
    plans = PERIODS // planner.commit_steps if planner.warm_start or planner.roll_committed else 1
    assert np.abs(bundle - full).max() <= 8 * planner.elites * planner.iterations * plans * FLOAT32_EPS
    assert (bundle[late:] != 0).any() and not bundle[:late].any()


def test_a_full_model_that_forgets_plays_another_episode(pair: Pair) -> None:
    manifest = read_manifest(pair.bundle)
    forgetful = replace(manifest.planner, warm_start=False, history=1, roll_committed=False, proposal=False)
    without = replace(manifest, planner=forgetful)
    apart = np.abs(acted(of_full(pair, manifest, 0)) - acted(of_full(pair, without, 0))).max()
    assert apart > 0.01 if forgetful != manifest.planner else apart == 0

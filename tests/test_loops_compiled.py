"""Both models in the loop, the bundle through its C ABI: the same plans at the same time, however late they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from edgewm.act import period_of
from edgewm.binding import Runtime
from edgewm.build import build
from edgewm.judge import latency
from edgewm.judge.noise import philox
from edgewm.judge.sides import upstream
from edgewm.manifest import read_manifest
from edgewm.models import load

MODEL, SEED, PERIODS = "tiny_models:tiny", 2**40 + 7, 14
FLOAT32_EPS = float(np.finfo(np.float32).eps)


@pytest.fixture(scope="module", params=[False, True], ids=["from the observation", "rolled on"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("loops") / "out"
    search = {"samples": 32, "horizon": 4, "commit_steps": 2, "roll_committed": request.param}
    build(MODEL, planner=search, out=out)
    return out


def states(period: int) -> dict[str, np.ndarray]:
    return {"state": np.random.default_rng(period).normal(0, 1, (1, 4)).astype(np.float32)}


@pytest.mark.parametrize("late", [0, 1, 3])
def test_the_bundle_and_the_full_model_act_alike(bundle: Path, late: int) -> None:
    manifest, model, clock = read_manifest(bundle), load(MODEL), [0]
    planner, goal = manifest.planner, {"state": np.zeros((1, 4), np.float32)}
    full = upstream(model, planner)
    with Runtime(bundle, period_ns=period_of(manifest), clock=lambda: clock[0]) as runtime:
        policies = [
            latency.timed(parts, planner, lambda: late)
            for parts in (
                latency.of_bundle(runtime, clock, manifest, goal, SEED),
                latency.of_model(full, manifest, goal, lambda plan: philox(planner, model.action_dim, SEED, plan)),
            )
        ]
        acted = np.array([[policy(states(period), period) for policy in policies] for period in range(PERIODS)])
    # Means of the same elites: sums of as many numbers within 1, after a few iterations of that.
    assert np.abs(acted[:, 0] - acted[:, 1]).max() <= 8 * planner.elites * planner.iterations * FLOAT32_EPS
    assert (acted[late:] != 0).any() and not acted[:late].any()

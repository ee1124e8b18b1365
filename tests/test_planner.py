"""The planner against upstream's, on the same noise: the same elites in every iteration, the same plan."""

from __future__ import annotations

from dataclasses import replace

import fixtures_models as fixtures
import numpy as np
import pytest
import torch
from fixtures_models import exact_constants  # noqa: F401
from torch_world.planning import CEM

from edgewm import arithmetic
from edgewm import expr as e
from edgewm.errors import EdgewmError
from edgewm.interp import run
from edgewm.models import Model, capture_model, own
from edgewm.planner import committed_actions, next_warm_mean, plan_graph
from edgewm.program import Graph, Planner, Program

PLANNER = Planner(samples=16, iterations=4, elites=5, horizon=3, action_block=1, commit_steps=1)


def noise_for(program: Program, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(program.port("noise").shape, np.float32)


def elites_by_iteration(program: Program, inputs: dict[str, np.ndarray], real: bool) -> list[list[int]]:
    """Elites of each round: the loop's body, run round by round."""
    graph = program.entries["plan_with_noise"]
    loop = next(n for n in graph.order() if n.op == "repeat")
    names = loop["carries"] + loop["invariants"]
    state = run(Graph(dict(zip(names, loop.sources, strict=True))), inputs, program.weights, real)
    found = []
    for i in range(loop["count"]):
        out = run(loop["body"], {**state, "counter": np.uint32(i)}, program.weights, real)
        state |= {name: out[name] for name in loop["carries"]}
        found.append(out["elites"].tolist())
    return found


def stable_worldmodel_cem(model: Model, planner: Planner, z: torch.Tensor, goal: torch.Tensor, noise: torch.Tensor):
    """`CEMSolver.solve` of stable-worldmodel 0.1.1 for one environment: mean, deviation, elites of each iteration."""
    mean = torch.zeros(noise.shape[2:], dtype=noise.dtype)
    deviation, elites, best = planner.var_scale * torch.ones_like(mean), [], None
    for draw in noise:
        candidates = draw * deviation + mean
        candidates[0] = mean
        cost = model.score(model.torch, z, goal, candidates)
        best, index = torch.topk(cost, planner.elites, largest=False)
        elites.append(sorted(index.tolist()))
        mean, deviation = candidates[index].mean(0), candidates[index].std(0)
    return mean, deviation, elites, best.mean()


def torch_world_cem(
    model: Model, planner: Planner, z: torch.Tensor, goal: torch.Tensor, noise: torch.Tensor, monkeypatch
):
    """torch-world's own `CEM`, its random numbers replaced by `noise`: the plan, and elites of each iteration."""
    elites, draws, module = [], iter(noise), model.torch
    cost = module.cost

    def recorded(rollout: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        found = cost(rollout, target)
        elites.append(sorted(found.topk(planner.elites, largest=False).indices.tolist()))
        return found

    bounds = None if planner.low is None else (planner.low, planner.high)
    cem = CEM(
        planner.horizon,
        model.action_dim,
        planner.samples,
        planner.elites,
        planner.iterations,
        planner.var_scale,
        bounds,
    )
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", lambda *shape, **_: next(draws)[None])
        patch.setattr(module, "cost", recorded)
        return cem(module, z[None], goal)[0], elites


def inputs_of(model: Model, program: Program, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    noise = noise_for(program, seed)
    warm = np.zeros(program.port("warm_mean").shape, np.float32)
    return fixtures.observation(model, seed) | {"noise": noise, "warm_mean": warm}, noise


def encoded(model: Model, inputs: dict[str, np.ndarray], kind: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    def of(port) -> torch.Tensor:
        x = torch.from_numpy(inputs[port.name])
        return x.to(kind) if x.is_floating_point() else x

    return tuple(model.encode(model.torch, *map(of, model.ports_of(k))) for k in ("observation", "goal"))


def plan_rounding(planner: Planner, unit: float) -> float:
    """Each iteration rounds a candidate (2) and sums k elites twice, with a root (k + 4 each)."""
    return unit * planner.iterations * (2 + 2 * (planner.elites + 4))


def compared(model: Model, program: Program, seed: int, upstream, real: bool) -> None:
    """Elites of every iteration equal, hence a plan that differs by the rounding of sampling and refit alone."""
    inputs, noise = inputs_of(model, program, seed)
    kind, dtype = (torch.float64, np.float64) if real else (torch.float32, np.float32)
    model.torch.to(kind)
    with torch.no_grad():
        mean, elites = upstream(*encoded(model, inputs, kind), torch.from_numpy(noise).to(kind))
    model.torch.float()
    assert elites_by_iteration(program, inputs, real) == elites
    found = run(program.entries["plan_with_noise"], inputs, program.weights, real)
    assert found["elites"].tolist() == elites[-1]
    bound = plan_rounding(program.planner, fixtures.UNIT_ROUNDOFF[dtype])
    assert fixtures.relative_error(found["actions"], mean) <= bound
    assert np.array_equal(found["actions"], found["mean"])


@pytest.mark.usefixtures("exact_constants")
@pytest.mark.parametrize("bounded", [True, False])
def test_plans_as_torch_world_does(bounded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    low, high = (-1.0, 1.0) if bounded else (None, None)
    planner = replace(PLANNER, first_candidate_is_mean=False, low=low, high=high, var_scale=0.7)
    model = fixtures.small_torch_world(planner)
    program = capture_model(model)
    for seed, real in ((0, True), (1, True), (2, False)):
        compared(model, program, seed, lambda *a: torch_world_cem(model, planner, *a, monkeypatch), real)


@pytest.mark.usefixtures("exact_constants")
def test_plans_as_stable_worldmodel_does() -> None:
    model = fixtures.small_lewm(PLANNER)
    program = capture_model(model)
    for seed, real in ((0, True), (1, True), (2, True), (3, False)):
        compared(model, program, seed, lambda *a: stable_worldmodel_cem(model, PLANNER, *a)[0:3:2], real)


@pytest.mark.usefixtures("exact_constants")
@pytest.mark.parametrize("name", ["tdmpc2", "rssm", "frame_causal"])
def test_plans_of_other_families(name: str) -> None:
    model = own.from_module(getattr(fixtures, name)(), name)
    program = capture_model(model)
    assert {p.name: p.kind for p in program.ports} == {
        "state": "observation", "goal": "goal", "action": "action", "warm_mean": "state", "plan_counter": "state",
        "seed": "state", "noise": "noise",
    }  # fmt: skip
    read = {w for entry in program.entries.values() for w in entry.weights()}
    assert read == set(program.weights) and all(w.dtype == np.float32 for w in program.weights.values())
    for seed, real in ((0, True), (1, False)):
        compared(model, program, seed, lambda *a: stable_worldmodel_cem(model, model.planner, *a)[0:3:2], real)


@pytest.fixture(scope="module")
def captured() -> tuple[Model, Program]:
    model = fixtures.small_lewm(replace(PLANNER, samples=8, iterations=2, elites=3, warm_start=True))
    return model, capture_model(model)


def test_cost_and_deviation_are_those_of_the_last_elites(captured: tuple[Model, Program]) -> None:
    model, program = captured
    inputs, noise = inputs_of(model, program, 0)
    found = run(program.entries["plan_with_noise"], inputs, program.weights)
    with torch.no_grad():
        latents = encoded(model, inputs, torch.float32)
        _, deviation, _, cost = stable_worldmodel_cem(model, program.planner, *latents, torch.from_numpy(noise))
    bound = fixtures.rounding(program.entries["score"], np.float32)
    assert fixtures.relative_error(found["cost"], cost) <= bound
    assert fixtures.relative_error(found["std"], deviation) <= plan_rounding(program.planner, 2.0**-24)


def plan(program: Program, model: Model, counter: int, seed: tuple[int, int], **more: np.ndarray) -> dict:
    state = {
        "warm_mean": np.zeros(program.port("warm_mean").shape, np.float32),
        "plan_counter": np.array([counter], np.uint32),
        "seed": np.array(seed, np.uint32),
    }
    return run(program.entries["plan"], fixtures.observation(model) | state | more, program.weights)


def test_the_seed_and_the_counter_decide_the_plan(captured: tuple[Model, Program]) -> None:
    model, program = captured
    first, again = plan(program, model, 4, (1, 2)), plan(program, model, 4, (1, 2))
    later, other = plan(program, model, 2**32 - 1, (1, 2)), plan(program, model, 4, (1, 3))
    assert all(np.array_equal(first[k], again[k]) for k in first)
    assert not np.array_equal(first["actions"], later["actions"])
    assert not np.array_equal(first["actions"], other["actions"])
    assert first["plan_counter"].tolist() == [5] and later["plan_counter"].tolist() == [0]


def test_philox_noise_injected_gives_the_same_plan(captured: tuple[Model, Program]) -> None:
    model, program = captured
    _, *shape = program.port("noise").shape
    draws = []
    for i in range(program.planner.iterations):
        words = [e.const(w, "u32") for w in (i, 4, 0, 1, 2)]
        draw = arithmetic.normal(tuple(shape), tuple(words[:3]), tuple(words[3:]))
        draws.append(run(Graph({"y": draw}), {}, {})["y"])
    drawn = plan(program, model, 4, (1, 2))
    inputs = inputs_of(model, program, 0)[0] | {"noise": np.stack(draws)}
    injected = run(program.entries["plan_with_noise"], inputs, program.weights)
    assert all(np.array_equal(injected[k], drawn[k]) for k in injected)


def test_warm_start_shifts_what_was_not_played(captured: tuple[Model, Program]) -> None:
    model, program = captured
    first = plan(program, model, 0, (1, 2))
    assert np.array_equal(first["warm_mean"][:-1], first["actions"][1:]) and not first["warm_mean"][-1].any()
    warm = plan(program, model, 0, (1, 2), warm_mean=first["warm_mean"])
    assert not np.array_equal(warm["actions"], first["actions"])


def test_without_warm_start_the_next_plan_starts_at_zero() -> None:
    mean = e.input("mean", (3, 2))
    for planner in (PLANNER, replace(PLANNER, warm_start=True, commit_steps=3)):
        shifted = run(Graph({"y": next_warm_mean(planner, mean)}), {"mean": np.ones((3, 2))}, {})["y"]
        assert not shifted.any()


def test_a_block_begun_counts_as_played() -> None:
    blocks = replace(PLANNER, action_block=5)
    assert [committed_actions(replace(blocks, commit_steps=n)) for n in (1, 5, 6, 15)] == [1, 1, 2, 3]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "mppi"}, "no planner of kind 'mppi'"),
        ({"samples": 0}, "samples is 0"),
        ({"elites": 17}, "17 elites of 16 samples"),
        ({"elites": 1}, "an unbiased deviation of 1 elite"),
        ({"var_scale": 0.0}, "var_scale is 0.0"),
        ({"low": 1.0, "high": -1.0}, "bounds are [1.0, -1.0]"),
        ({"commit_steps": 4}, "4 committed periods exceed the plan of 3"),
        ({"history": 2}, "history is 2"),
        ({"action_block": 3}, "a model action of 2 numbers is no block of 3 periods"),
    ],
)
def test_settings_that_make_no_plan_are_refused(fields: dict, message: str) -> None:
    model = fixtures.small_lewm()
    with pytest.raises(EdgewmError) as caught:
        capture_model(model, replace(PLANNER, **fields))
    assert message in str(caught.value) and "planner settings" in str(caught.value)


def test_a_score_of_another_size_is_refused(captured: tuple[Model, Program]) -> None:
    program = captured[1]
    with pytest.raises(EdgewmError, match="score takes 8 candidates of 3 actions"):
        plan_graph(program.entries["encode"], program.entries["score"], PLANNER)

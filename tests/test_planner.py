"""The planner against upstream's, on the same noise: the same elites in every iteration, the same plan."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import fixtures_models as fixtures
import numpy as np
import pytest
import torch
from fixtures_models import exact_constants  # noqa: F401
from planning import drawn, elites_by_iteration, noise_for, plan_rounding, stable_worldmodel_cem
from torch_world.planning import CEM

from edgewm import arithmetic, cli_options
from edgewm import expr as e
from edgewm.errors import EdgewmError
from edgewm.interp import run
from edgewm.models import Model, capture_model, own
from edgewm.models.robot import with_robot
from edgewm.planner import (
    KINDS,
    OBJECTIVES,
    committed_actions,
    next_warm_mean,
    plan_graph,
    plan_weights,
    settled,
)
from edgewm.program import Graph, Planner, Program

PLANNER = Planner(samples=16, iterations=4, elites=5, horizon=3, action_block=1, commit_steps=1)


def torch_world_cem(
    model: Model,
    planner: Planner,
    z: torch.Tensor,
    goal: torch.Tensor,
    noise: torch.Tensor,
    monkeypatch,
    past: torch.Tensor | None = None,
):
    """torch-world's own `CEM`, its random numbers replaced by `noise`: the plan, and elites of each iteration."""
    elites, draws, module = [], iter(noise), model.torch
    topk = torch.Tensor.topk

    def recorded(cost: torch.Tensor, k: int, **options: bool):
        found = topk(cost, k, **options)
        elites.append(sorted(found.indices[0].tolist()))
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
        planner.objective,
    )
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", lambda *shape, **_: next(draws)[None])
        patch.setattr(torch.Tensor, "topk", recorded)
        return cem(module, z[None], goal, None if past is None else past[None])[0], elites


def inputs_of(model: Model, program: Program, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A plan that starts at zero; with a history, after frames and actions that were drawn."""
    noise, older = noise_for(program, seed), program.planner.history - 1
    state = {"warm_mean": np.zeros(program.port("warm_mean").shape, np.float32)}
    if older:
        ports = [p for p in program.ports if p.name in ("history_z", "history_actions")]
        state |= drawn(tuple(ports), seed) | {"frames_seen": np.array([older], np.uint32)}
    return fixtures.observation(model, seed) | {"noise": noise} | state, noise


def encoded(model: Model, inputs: dict[str, np.ndarray], kind: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    def of(port) -> torch.Tensor:
        x = torch.from_numpy(inputs[port.name])
        return x.to(kind) if x.is_floating_point() else x

    return tuple(model.encode(model.torch, *map(of, model.ports_of(k))) for k in ("observation", "goal"))


def compared(model: Model, program: Program, seed: int, upstream, real: bool) -> None:
    """Elites of every iteration equal, hence a plan that differs by the rounding of sampling and refit alone."""
    inputs, noise = inputs_of(model, program, seed)
    kind, dtype = (torch.float64, np.float64) if real else (torch.float32, np.float32)
    model.torch.to(kind)
    with torch.no_grad():
        z, goal = encoded(model, inputs, kind)
        past = ()
        if program.planner.history > 1:
            before, *past = (torch.from_numpy(inputs[k]).to(kind) for k in ("history_z", "history_actions"))
            z = torch.cat([before, z])
        mean, elites = upstream(z, goal, torch.from_numpy(noise).to(kind), *past)
    model.torch.float()
    assert elites_by_iteration(program, inputs, real) == elites
    found = run(program.entries["plan_with_noise"], inputs, program.weights, real)
    assert found["elites"].tolist() == elites[-1]
    bound = plan_rounding(program.planner, fixtures.UNIT_ROUNDOFF[dtype])
    assert fixtures.relative_error(found["actions"], mean) <= bound
    assert np.array_equal(found["actions"], found["mean"])


@pytest.mark.usefixtures("exact_constants")
@pytest.mark.parametrize(
    "settings",
    [{"low": -1.0, "high": 1.0}, {"objective": "path"}, {"history": 2, "objective": "path", "low": -1.0, "high": 1.0}],
)
def test_plans_as_torch_world_does(settings: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    planner = replace(PLANNER, first_candidate_is_mean=False, var_scale=0.7, **settings)
    model = fixtures.small_torch_world(planner)
    program = capture_model(model)
    for seed, real in ((0, True), (1, True), (2, False)):
        compared(
            model, program, seed, lambda *a: torch_world_cem(model, planner, *a[:3], monkeypatch, *a[3:]), real
        )  # fmt: skip


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
    ("fields", "message", "fix"),
    [
        ({"kind": "gradient"}, "no planner of kind 'gradient'", "use cem, icem, mppi"),
        ({"samples": 0}, "samples is 0", "give samples of at least 1"),
        ({"elites": 17}, "17 elites of 16 samples", "at most as many elites as samples"),
        ({"elites": 1}, "an unbiased deviation of 1 elite", "take 2 elites or more"),
        ({"var_scale": 0.0}, "var_scale is 0.0", "give a positive number"),
        ({"low": 1.0, "high": -1.0}, "bounds are [1.0, -1.0]", "give low below high"),
        ({"commit_steps": 4}, "4 committed periods exceed the plan of 3", "at most horizon * action_block"),
        ({"history": 0}, "history is 0", "give history of at least 1"),
        ({"history": 2, "commit_steps": 2}, "a history of 2 frames with 2 committed periods", "the action_block, 1"),
        ({"history": 4}, "history is 4, the model looks at 3 frames at most", "give a history of 1 to 3"),
        ({"objective": "best"}, "no objective 'best'", "use final or path"),
        (
            {"roll_committed": True, "action_block": 2, "commit_steps": 3},
            "roll_committed with 3 committed periods", "a multiple of the action_block, 2",
        ),
        ({"action_block": 3}, "a model action of 2 numbers is no block of 3 periods", "the model was trained with"),
        ({"kind": "icem", "elites": 1}, "an unbiased deviation of 1 elite", "take 2 elites or more"),
        ({"kind": "icem", "noise_beta": -1.0}, "noise_beta is -1.0", "give 0 (white noise) or more"),
        ({"kind": "icem", "noise_beta": float("nan")}, "noise_beta is nan", "give 0 (white noise) or more"),
        ({"kind": "icem", "alpha": 1.0}, "alpha is 1.0", "0, below 1"),
        ({"kind": "icem", "n_elite_keep": -1}, "n_elite_keep is -1", "keep 0 elites or more"),
        (
            {"kind": "icem", "samples": 5, "elites": 5}, "the mean and 5 kept elites of 5 samples",
            "take more samples, or a smaller n_elite_keep",
        ),
        ({"kind": "mppi", "temperature": 0.0}, "temperature is 0.0", "give a positive number"),
        ({"kind": "mppi", "temperature": float("inf")}, "temperature is inf", "give a positive number"),
    ],
)  # fmt: skip
def test_settings_that_make_no_plan_are_refused(fields: dict, message: str, fix: str) -> None:
    model = fixtures.small_lewm()
    with pytest.raises(EdgewmError) as caught:
        capture_model(model, replace(PLANNER, **fields))
    assert message in caught.value.what and caught.value.where == "planner settings" and fix in caught.value.fix


def test_a_model_that_scores_no_path_is_told_so() -> None:
    model = replace(fixtures.small_lewm(), path_score=None)
    with pytest.raises(EdgewmError, match="this model scores no path") as caught:
        capture_model(model, replace(PLANNER, objective="path"))
    assert caught.value.fix == "plan with the objective final"


@pytest.mark.parametrize(
    ("kind", "given", "message", "fix"),
    [
        ("cem", {"alpha": 0.2}, "alpha is no setting of cem", "leave it out, or plan with icem"),
        ("icem", {"kind": "mppi", "return_mean": False}, "return_mean is no setting of mppi", "plan with icem"),
        ("cem", {"kind": "icem", "temperature": 1.0}, "temperature is no setting of icem", "plan with mppi"),
    ],
)
def test_settings_of_another_kind_are_refused(kind: str, given: dict, message: str, fix: str) -> None:
    with pytest.raises(EdgewmError) as caught:
        settled(Planner(kind=kind), given, "here")
    assert message in caught.value.what and caught.value.where == "here" and fix in caught.value.fix


def test_another_kind_starts_from_its_own_first_candidate() -> None:
    base = Planner(first_candidate_is_mean=False, action_block=5, commit_steps=25)
    assert settled(base, {"kind": "icem", "alpha": 0.3}) == replace(
        base, kind="icem", alpha=0.3, first_candidate_is_mean=True
    )
    assert not settled(base, {"kind": "icem", "first_candidate_is_mean": False}).first_candidate_is_mean
    assert not settled(base, {"kind": "cem", "samples": 8}).first_candidate_is_mean
    assert settled(base, {"history": 2}).commit_steps == 5
    assert settled(base, {"history": 2, "commit_steps": 10}).commit_steps == 10


def test_the_command_line_offers_every_setting_a_user_may_choose() -> None:
    offered = {field: flags for field, (flags, _, _) in cli_options.PLANNER.items()}
    fields = {f.name for f in dataclasses.fields(Planner)}
    others = {"action_block", "low", "high", "first_candidate_is_mean", "unbiased_std"}  # the model's, of robot.json
    assert set(offered) == fields - others
    words = {field: takes for field, (_, takes, _) in cli_options.PLANNER.items() if isinstance(takes, tuple)}
    assert words == {"kind": tuple(KINDS), "objective": OBJECTIVES}
    alone = [name for names in KINDS.values() for name in names]
    assert all(cli_options.PLANNER[name][2].startswith(("icem:", "mppi:")) for name in alone)


def test_nothing_but_icem_reads_the_colour_of_noise() -> None:
    for planner in (Planner(), Planner(kind="mppi"), Planner(kind="icem", horizon=1)):
        assert plan_weights(planner) == {}
    (matrix,) = plan_weights(Planner(kind="icem", noise_beta=0.0)).values()
    assert np.array_equal(matrix, np.eye(5, dtype=np.float32))
    (matrix,) = plan_weights(Planner(kind="icem", horizon=6)).values()
    assert np.array_equal(matrix, matrix.T)


def test_a_score_of_another_size_is_refused(captured: tuple[Model, Program]) -> None:
    program = captured[1]
    with pytest.raises(EdgewmError, match="score takes 8 candidates of 3 actions after 1 frames"):
        plan_graph(program.entries["encode"], program.entries["score"], PLANNER)


def test_robot_json_names_a_kind_and_what_belongs_to_it(tmp_path: Path) -> None:
    model = fixtures.small_lewm(replace(PLANNER, first_candidate_is_mean=False))

    def described(**planner: object) -> Planner:
        (tmp_path / "robot.json").write_text(json.dumps({"planner": planner}))
        return with_robot(model, tmp_path).planner

    found = described(kind="icem", noise_beta=1, alpha=0.2, n_elite_keep=3, return_mean=False, history=2)
    assert found == replace(
        PLANNER, kind="icem", noise_beta=1.0, alpha=0.2, n_elite_keep=3, return_mean=False, history=2
    )  # fmt: skip
    assert described(kind="mppi", temperature=2, roll_committed=True).roll_committed
    for planner, what, fix in (
        ({"temperature": 2}, "temperature is no setting of cem", "leave it out, or plan with mppi"),
        ({"kind": "annealing"}, "no planner of kind 'annealing'", "use cem, icem, mppi"),
        ({"kind": "icem", "alpha": 2}, "alpha is 2.0", "0, below 1"),
        ({"kind": "icem", "return_mean": 1}, "return_mean is 1", "give true or false"),
        ({"history": 2, "commit_steps": 3}, "a history of 2 frames with 3 committed periods", "the action_block, 1"),
    ):
        with pytest.raises(EdgewmError) as caught:
            described(**planner)
        assert what in caught.value.what and fix in caught.value.fix
        assert caught.value.where == f"{tmp_path / 'robot.json'}, planner"

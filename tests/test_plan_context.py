"""What a plan starts from: frames before the newest, and actions that are already on their way."""

from __future__ import annotations

from typing import Any

import fixtures_models as fixtures
import numpy as np
import pytest
import torch
from fixtures_models import exact_constants  # noqa: F401
from planning import (
    Arrays,
    asked,
    drawn,
    elites_by_iteration,
    no_state,
    noise_for,
    plan_rounding,
    program_of,
    remembering,
    stable_worldmodel_cem,
)

from edgewm.interp import run
from edgewm.planner import committed_actions, context
from edgewm.program import Graph, Program

UNIT = fixtures.UNIT_ROUNDOFF[np.float64]
pytestmark = pytest.mark.usefixtures("exact_constants")


def inputs_of(program: Program, window: int, block: int, seed: int = 0, **state: Any) -> Arrays:
    """Drawn observation, goal, noise and state, as after some plans."""
    model = remembering(window, block)
    given = no_state(program, model)
    states = tuple(p for p in program.ports if p.name in given and p.dtype == "f32" and p.name != "warm_mean")
    ports = model.ports_of("observation") + model.ports_of("goal")
    return given | drawn(ports + states, seed) | {"noise": noise_for(program, seed)} | state


def latent_of(window: int, block: int, observation: np.ndarray) -> torch.Tensor:
    model = remembering(window, block)
    model.torch.double()
    with torch.no_grad():
        z = model.encode(model.torch, torch.from_numpy(observation).double())
    model.torch.float()
    return z


def plans_as_cem(
    program: Program, window: int, block: int, inputs: Arrays, latents: torch.Tensor, past: torch.Tensor
) -> Arrays:
    """Every output of the plan, which must be cross-entropy search from these latents and past actions."""
    model = remembering(window, block)
    goal, noise = latent_of(window, block, inputs["goal"]), torch.from_numpy(inputs["noise"]).double()
    model.torch.double()
    with torch.no_grad():
        mean, _, elites, _ = stable_worldmodel_cem(model, program.planner, latents, goal, noise, past)
    model.torch.float()
    given = asked(program, "plan_with_noise", inputs)
    assert elites_by_iteration(program, given, True) == elites
    found = run(program.entries["plan_with_noise"], given, program.weights, real=True)
    assert fixtures.relative_error(found["actions"], mean) <= plan_rounding(program.planner, UNIT)
    return found


def rolled(window: int, latents: torch.Tensor, actions: torch.Tensor, block: int = 1) -> torch.Tensor:
    """The last latents, as many as there were, after all of the actions (T0 - 1 + C, action), as upstream rolls out."""
    model = remembering(window, block)
    model.torch.double()
    found = list(latents)
    with torch.no_grad():
        for t in range(len(latents), len(actions) + 1):
            seen = slice(max(0, t - window), t)
            found.append(model.predict(model.torch, torch.stack(found[seen])[None], actions[seen][None])[0])
    model.torch.float()
    return torch.stack(found[-len(latents) :])


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).double()


# ------------------------------------------------------------------------------------------------------- the history


@pytest.mark.parametrize("history", [2, 3])
def test_a_first_plan_takes_the_first_frame_for_those_before(history: int) -> None:
    """Whatever the state ports hold: nothing has been seen."""
    program = program_of(3, 1, history=history)
    inputs = inputs_of(program, 3, 1)
    z = latent_of(3, 1, inputs["state"])
    found = plans_as_cem(program, 3, 1, inputs, z.expand(history, -1), torch.zeros(history - 1, 2))
    assert found["frames_seen"].tolist() == [1]
    assert np.array_equal(found["history_z"], np.repeat(found["history_z"][:1], history - 1, 0))
    assert np.abs(found["history_z"] - z.numpy()).max() <= fixtures.rounding(program.entries["encode"], np.float64)
    assert not found["history_actions"][:-1].any()
    assert np.array_equal(found["history_actions"][-1], found["actions"][0])


@pytest.mark.parametrize("history", [2, 3])
@pytest.mark.parametrize("kept", [1, 2])
def test_a_plan_looks_back_at_the_frames_before(history: int, kept: int) -> None:
    program = program_of(3, 1, history=history)
    inputs = inputs_of(program, 3, 1, frames_seen=np.uint32([kept]))
    latents = torch.cat([tensor(inputs["history_z"]), latent_of(3, 1, inputs["state"])])
    found = plans_as_cem(program, 3, 1, inputs, latents, tensor(inputs["history_actions"]))
    assert found["frames_seen"].tolist() == [min(kept + 1, history - 1)]
    assert np.array_equal(found["history_z"][:-1], inputs["history_z"][1:])
    assert np.array_equal(found["history_actions"][:-1], inputs["history_actions"][1:])
    assert np.array_equal(found["history_actions"][-1], found["actions"][0])


def test_frames_and_actions_move_on_from_plan_to_plan() -> None:
    """What is fed back, as the runtime does it: after `history` plans the context is the last frames seen."""
    program = program_of(3, 1, history=3)
    model, state, frames, played = remembering(3, 1), {}, [], []
    for plan in range(4):
        inputs = no_state(program, model) | inputs_of(program, 3, 1, seed=plan) | no_state(program, model) | state
        found = run(program.entries["plan_with_noise"], asked(program, "plan_with_noise", inputs), program.weights)
        encoded = run(program.entries["encode"], {"state": inputs["state"]}, program.weights)["z"][0]
        frames.append(encoded)
        played.append(found["actions"][0])
        state = {name: found[name] for name in found if name in inputs}
        before = [frames[0]] * max(0, 1 - plan) + frames[-2:]
        actions = [np.zeros_like(played[0])] * max(0, 1 - plan) + played[-2:]
        assert np.array_equal(state["history_z"], np.stack(before))
        assert np.array_equal(state["history_actions"], np.stack(actions))
        assert state["frames_seen"].tolist() == [min(plan + 1, 2)]


def test_without_a_history_or_rolling_there_is_no_state_of_it() -> None:
    program = program_of(2, 1)
    assert set(no_state(program, remembering(2, 1))) == {"warm_mean", "plan_counter", "seed"}
    assert set(program.entries["plan"].outputs) == {
        "actions", "mean", "std", "cost", "elites", "warm_mean", "plan_counter",
    }  # fmt: skip


# ------------------------------------------------------------------------------------ what is committed, rolled forward


@pytest.mark.parametrize("begun", [1, 2, 3, 5, 8, 9, 2**31, 2**32 - 1])
def test_committed_actions_begin_with_the_period_of_the_observation(begun: int) -> None:
    """Blocks of 2 periods, 4 of them committed: from any period on; where the chunk ends its last one is held."""
    program = program_of(2, 2, roll_committed=True, commit_steps=4)
    planner, width = program.planner, remembering(2, 2).action_dim
    assert committed_actions(planner) == 2
    chunk = np.random.default_rng(0).standard_normal((planner.horizon, width), np.float32)
    graph = Graph({"y": context.committed(planner, width)})
    found = run(graph, {"chunk": chunk, "periods_begun": np.uint32([begun])}, {})["y"]
    rows = chunk.reshape(planner.horizon * 2, -1)
    wanted = rows[[min(begun - 1 + i, len(rows) - 1) for i in range(4)]]
    assert np.array_equal(found, wanted.reshape(2, width))


@pytest.mark.parametrize("begun", [1, 2, 4])
def test_a_plan_begins_where_the_committed_actions_end(begun: int) -> None:
    program = program_of(2, 2, roll_committed=True, commit_steps=4)
    inputs = inputs_of(program, 2, 2, periods_begun=np.uint32([begun]))
    rows = inputs["chunk"].reshape(-1, 2)
    coming = tensor(rows[[min(begun - 1 + i, 7) for i in range(4)]].reshape(2, 4))
    latents = rolled(2, latent_of(2, 2, inputs["state"]), coming, 2)
    found = plans_as_cem(program, 2, 2, inputs, latents, torch.zeros(0, 4))
    assert np.array_equal(found["chunk"], found["actions"])


def test_nothing_is_rolled_where_no_chunk_is_played() -> None:
    program = program_of(2, 2, roll_committed=True, commit_steps=4)
    inputs = inputs_of(program, 2, 2)
    plans_as_cem(program, 2, 2, inputs, latent_of(2, 2, inputs["state"]), torch.zeros(0, 4))


@pytest.mark.parametrize("frames_seen", [0, 2])
def test_a_context_of_frames_is_rolled_as_a_whole(frames_seen: int) -> None:
    """The frames a plan then starts from are partly imagined; what is kept for the next plan was really seen."""
    program = program_of(3, 1, history=3, roll_committed=True)
    inputs = inputs_of(program, 3, 1, frames_seen=np.uint32([frames_seen]), periods_begun=np.uint32([1]))
    z = latent_of(3, 1, inputs["state"])
    before, past = tensor(inputs["history_z"]), tensor(inputs["history_actions"])
    if not frames_seen:
        before, past = z.expand(2, -1), torch.zeros(2, 2)
    actions = torch.cat([past, tensor(inputs["chunk"][:1])])
    latents = rolled(3, torch.cat([before, z]), actions)
    found = plans_as_cem(program, 3, 1, inputs, latents, actions[-2:])
    seen = torch.cat([before, z])[1:].numpy()
    assert np.abs(found["history_z"] - seen).max() <= fixtures.rounding(program.entries["encode"], np.float64)
    assert np.array_equal(found["history_actions"][-1], inputs["chunk"][0])  # that one is being played


def test_what_was_rolled_matters() -> None:
    """The planted fault: committed actions of another plan change what is planned."""
    program = program_of(2, 2, roll_committed=True, commit_steps=4)
    inputs = inputs_of(program, 2, 2, periods_begun=np.uint32([1]))
    latents = rolled(2, latent_of(2, 2, inputs["state"]), tensor(inputs["chunk"][:2]), 2)
    with pytest.raises(AssertionError):
        plans_as_cem(program, 2, 2, inputs | {"chunk": -inputs["chunk"]}, latents, torch.zeros(0, 4))

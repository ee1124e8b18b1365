"""The suites that follow recorded futures: a model that knows its world passes, each planted fault fails its gate.

The world is linear: a state of four numbers, of which actions move the first two; a picture is the state itself. The
full model sees it through an orthonormal basis and knows its motion but for a little noise.
"""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
from test_validate import ACTION, CONTEXTS, PLANNER, PORTS, quiet

from edgewm.judge import causality, gates, general, horizon, physics, sides, sources
from edgewm.judge.imagine import Subjects, follow, one_ahead

STATES, LATENT, WINDOW, BLOCK = 4, 6, 2, PLANNER.action_block
BASIS = np.linalg.qr(np.random.default_rng(0).normal(size=(LATENT, LATENT)))[0][:STATES]
FORWARD = 0.25  # of a state, by one period of a full action


def step(x: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """States (..., 4) one period later."""
    moved = np.concatenate([actions, np.zeros_like(actions)], -1)
    return 0.98 * x + FORWARD * moved


def walked(rng: np.random.Generator, n: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Actions (n, T, 2) and states (n, T + 1, 4)."""
    actions, x = rng.uniform(-1, 1, (n, steps, 2)), [rng.normal(0, 1, (n, STATES))]
    for t in range(steps):
        x.append(step(x[-1], actions[:, t]))
    return actions, np.stack(x, 1)


def rollouts(n: int, steps: int, seed: int):
    actions, x = walked(np.random.default_rng([1, seed]), n, steps)
    return zip(x, actions, x, strict=True)


def impossible(n: int, steps: int, seed: int):
    actions, x = walked(np.random.default_rng([2, seed]), n, steps)
    for i in range(n):
        jumped = x[i] + np.where(np.arange(steps + 1) >= steps // 2, 3.0, 0.0)[:, None]
        yield sources.Clip("jump" if i % 2 else "slide", actions[i], x[i], jumped)


def branches(n: int, steps: int, seed: int):
    rng = np.random.default_rng([3, seed])
    for _ in range(n):
        actions = rng.uniform(-1, 1, (2, steps, 2))
        x = [np.repeat(rng.normal(0, 1, (1, STATES)), 2, 0)]
        for t in range(steps):
            x.append(step(x[-1], actions[:, t]))
        yield sources.Branch(actions, np.stack(x, 1))


def contexts(n: int, seed: int):
    rng = np.random.default_rng([4, seed])
    for _ in range(n):
        yield {"pixels": rng.normal(0, 1, STATES)}, {"pixels": rng.normal(0, 1, STATES)}


def far_away(n: int, seed: int):
    for observation, goal in contexts(n, seed):
        yield {"pixels": observation["pixels"] + 10}, {"pixels": goal["pixels"] + 10}


SOURCE = sources.Source(
    contexts=contexts, rollouts=rollouts, impossible=impossible, branches=branches, names=("a", "b", "c", "d"),
    states=lambda n, seed: (np.random.default_rng([5, seed]).normal(0, 1, (n, STATES)),) * 2,
    shifts=lambda: {"near": sources.Shift(contexts, rollouts), "far": sources.Shift(far_away)},
)  # fmt: skip


def encode(observation) -> np.ndarray:
    return observation["pixels"] @ BASIS


def predict(z: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """One model action from the last latent."""
    x = z[:, -1] @ BASIS.T
    for period in actions[:, -1].reshape(len(z), BLOCK, 2).transpose(1, 0, 2):
        x = step(x, period)
    return 0.995 * x @ BASIS


def side(encode=encode, predict=predict, **replaced) -> sides.Side:
    """A model of that world; whatever it scores and plans follows from its steps."""

    def score(z: np.ndarray, goal: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        made = sides.Side(encode, predict, score, plan, WINDOW)
        latents = follow(made, np.repeat(z[None, None], len(candidates), 0), candidates)
        return np.square(latents[:, -1] - goal).sum(-1)

    def plan(observation, goal, noise: np.ndarray) -> np.ndarray:
        z, target = encode(observation), encode(goal)
        return sides.search(lambda c: score(z, target, c), PLANNER, noise).mean

    return dataclasses.replace(sides.Side(encode, predict, score, plan, WINDOW), **replaced)


SUITES = {"physics": physics, "causality": causality, "horizon": horizon, "general": general}


def looked(suite: str, compressed: sides.Side, n: int = CONTEXTS, source: sources.Source = SOURCE):
    subjects = Subjects(side(), compressed, PLANNER, "pixels", PORTS[2])
    figures, rows, left_out = SUITES[suite].run(subjects, source, n, 0, quiet)
    return figures, {r["name"]: r for r in rows}, left_out


def blind(observation) -> np.ndarray:
    """Sees all but one number of the state."""
    return (observation["pixels"] * [1, 0, 1, 1]) @ BASIS


def far_off(observation) -> np.ndarray:
    """Right where training was, wrong beyond."""
    x = observation["pixels"]
    return (np.where(np.abs(x) < 5, x, x[::-1])) @ BASIS


def scattered(z: np.ndarray, actions: np.ndarray) -> np.ndarray:
    return predict(z, actions) + np.random.default_rng(len(z)).normal(0, 2, z[:, -1].shape)


def forgets_when_it_remembers(z: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Wrong as soon as there are two frames."""
    return predict(z, actions) if z.shape[1] == 1 else predict(z[:, :1], actions[:, :1])


def leaking(z: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """A scale shared by all rows: the others' actions change this row's latent, if only a little."""
    return predict(z, actions) * (1 + 1e-7 * np.abs(actions).mean())


def damped(z: np.ndarray, actions: np.ndarray) -> np.ndarray:
    return predict(z, 0.5 * actions)


def runaway(z: np.ndarray, actions: np.ndarray) -> np.ndarray:
    return 1.4 * predict(z, actions)


FAULTS = {
    "a state that is not seen": ("physics", side(encode=blind), {"probe_loss"}),
    "a state that is lost on the way": (
        "physics", side(predict=lambda z, a: predict(z, a) @ BASIS.T * [1, 0, 1, 1] @ BASIS), {"imagined_probe_loss"},
    ),
    "surprised by everything": ("physics", side(predict=scattered), {"surprise_loss"}),
    "actions half as strong": ("causality", side(predict=damped), {"action_effect", "counterfactual_added"}),
    "actions that do nothing": (
        "causality", side(predict=lambda z, a: predict(z, 0 * a)),
        {"action_effect", "counterfactual_added", "recoverability_loss"},
    ),
    "a scale over all candidates": ("causality", side(predict=leaking), {"prefix_causality"}),
    "latents that run away": (
        "horizon", side(predict=runaway), {"future_error_added", "horizon_kept", "blackout_added"},
    ),
    "a memory that misleads": (
        "horizon", side(predict=forgets_when_it_remembers), {"prefix_gap_added", "future_error_added"},
    ),
    "score and predict disagree": (
        "horizon", side(score=lambda z, goal, c: side().score(z, goal, -c)), {"self_consistency"},
    ),
    "wrong outside the training range": ("general", side(encode=far_off), {"shifted_rank", "shifted_regret"}),
    "wrong where futures are known": ("general", side(predict=runaway), {"shifted_error_added"}),
}  # fmt: skip


@pytest.mark.parametrize("suite", SUITES)
def test_the_full_model_passes_against_itself(suite):
    _, rows, left_out = looked(suite, side())
    assert {r["passed"] for r in rows.values()} == {True} and not left_out, rows


@pytest.mark.parametrize("suite", SUITES)
def test_a_little_rounding_passes_and_too_few_contexts_decide_nothing(suite):
    step = np.float32(0.002)
    rounded = side(predict=lambda z, a: np.round(predict(z, a) / step) * step)
    assert {r["passed"] for r in looked(suite, rounded)[1].values()} == {True}
    assert {r["passed"] for r in looked(suite, rounded, 8)[1].values()} == {None}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_fails_its_gate(name):
    suite, compressed, caught_by = FAULTS[name]
    _, rows, _ = looked(suite, compressed)
    assert caught_by <= {k for k, r in rows.items() if r["passed"] is False}, rows


def test_every_gate_of_these_suites_is_failed_by_some_fault():
    there = {name for suite in SUITES for name in looked(suite, side(), 4)[1]}
    assert {name for _, _, caught in FAULTS.values() for name in caught} == there
    of_plan = {"spearman_min", "elite_overlap", "regret", "cost_error", "first_action_ratio", "drift"}
    of_others = {"search_regret", "own_plans", "exact_costs", "closed_loop_loss", "shifted_loss", "late_loss"}
    assert gates.GATES.keys() - there - of_plan == of_others


def test_figures_of_physics():
    figures, _, _ = looked("physics", side())
    assert figures["probe_names"] == ["a", "b", "c", "d"] and min(figures["probe_r2"]) > 0.99
    assert figures["surprise_auroc_by_kind"].keys() == {"jump", "slide"} and figures["surprise_auroc"] == [1.0, 1.0]
    assert len(figures["imagined_probe_r2_by_step"][0]) == PLANNER.horizon + 1
    bare = dataclasses.replace(SOURCE, states=None, impossible=None)
    figures, rows, left_out = looked("physics", side(), source=bare)
    assert figures == {} and rows == {} and len(left_out) == 2


def beside(n: int, seed: int, trajectories: int, moments: int):
    """Frames of few trajectories, `moments` of each, as `derived` has them of recorded ones."""
    _, x = walked(np.random.default_rng([6, seed]), trajectories, 10)
    return *(np.repeat(x[:, 0], moments, 0),) * 2, np.repeat(np.arange(trajectories), moments)


@pytest.mark.parametrize(("trajectories", "passed"), [(CONTEXTS - 1, None), (CONTEXTS, True)])
def test_frames_of_one_trajectory_are_one_sample(trajectories, passed):
    source = dataclasses.replace(SOURCE, impossible=None, states=lambda n, seed: beside(n, seed, trajectories, 8))
    figures, rows, _ = looked("physics", side(), source=source)
    row = rows["probe_loss"]
    assert figures["probe_frames"] == 8 * trajectories and (row["samples"], row["passed"]) == (trajectories, passed)


def test_a_probe_never_saw_what_it_is_asked_about():
    """States that no picture shows, but one number of each trajectory's own: known by heart they would be read."""
    rng = np.random.default_rng(0)
    latents, unit = np.repeat(rng.normal(size=(20, 40)), 9, 0), np.repeat(np.arange(20), 9)
    shown = physics.Shown([latents, latents], np.repeat(rng.normal(size=(20, 1)), 9, 0), unit)
    spread = np.square(shown.states - shown.states.mean(0)).mean()
    assert np.square(shown.read(0, latents) - shown.states).mean() < 0.01 * spread
    assert np.square(shown.out_of_fold(0, 0) - shown.states).mean() > 0.5 * spread


def test_states_that_never_change_are_left_out_and_few_trajectories_decide_nothing():
    def probed(states):
        return looked("physics", side(), source=dataclasses.replace(SOURCE, impossible=None, states=states))

    def still(n: int, seed: int):
        frames, states = SOURCE.states(n, seed)
        return frames, np.where(np.arange(STATES) == 1, 0.3, states)

    figures, rows, left_out = probed(still)
    assert figures["probe_names"] == ["a", "c", "d"] and rows["probe_loss"]["passed"] is True
    assert left_out[0] == "b is the same in every frame, so nothing to probe for" and len(left_out) == 2
    _, rows, left_out = probed(lambda n, seed: (SOURCE.states(n, seed)[0], np.ones((n, STATES))))
    assert rows == {} and len(left_out) == STATES + 1
    _, rows, _ = probed(lambda n, seed: beside(n, seed, 4, 8))
    assert (rows["probe_loss"]["samples"], rows["probe_loss"]["passed"]) == (4, None)


def test_figures_of_causality():
    figures, rows, _ = looked("causality", side(predict=damped))
    real, full, compressed = (figures["divergence_by_step"][k][-1] for k in ("real", "full", "compressed"))
    assert full == pytest.approx(real, rel=0.05) and compressed == pytest.approx(full / 2, rel=0.05)
    assert rows["action_effect"]["value"] == pytest.approx(0.5, rel=0.05)
    assert figures["action_r2"][0] > 0.9 > figures["action_r2_by_period"][0] > 0.4
    assert figures["prefix_change"] == [0.0, 0.0]
    few = looked("causality", side(), 1)[1]["recoverability_loss"]
    assert (few["passed"], few["samples"]) == (None, 1)
    figures, rows, left_out = looked("causality", side(), source=dataclasses.replace(SOURCE, branches=None))
    assert "counterfactual_added" not in rows and left_out == ["no two real futures from one start"]


def test_figures_of_horizon():
    figures, _, _ = looked("horizon", side(predict=runaway))
    steps = horizon.LOOKS * PLANNER.horizon
    assert len(figures["full_error_by_step"]) == steps + 1 and figures["full_error_by_step"][0] < 1e-9
    assert figures["reached_threshold"] == [False, True] and figures["steps_to_threshold"][0] == steps
    assert figures["prefix_steps"] == [12, 5] and figures["blackout_steps"] == list(range(1, steps - WINDOW + 2))
    short = dataclasses.replace(SOURCE, longest=PLANNER.horizon * BLOCK)
    assert len(looked("horizon", side(), source=short)[0]["full_error_by_step"]) == PLANNER.horizon + 1


def test_figures_of_general():
    figures, _, _ = looked("general", side(encode=far_off))
    assert figures["shifts"]["near"]["spearman_min"] > 0.99 > figures["shifts"]["far"]["spearman_min"]
    assert "error" not in figures["shifts"]["far"] and figures["usual_error"][0] < 0.1
    figures, rows, left_out = looked("general", side(), source=dataclasses.replace(SOURCE, shifts=None))
    assert figures == {} and rows == {} and left_out == ["no shifted scenes, and no contexts to make them of"]


@pytest.mark.parametrize("is_endless", [False, True])
def test_no_scene_is_counted_in_two_shifts(is_endless):
    """Whatever shifts make of the same draws, each draw is looked at in one of them alone."""
    n, asked, seen = 7, [], Counter()

    def spied(draw):
        return lambda *given: asked.append(given) or draw(*given)

    def told(observation):
        seen[observation["pixels"].tobytes()] += 1
        return encode(observation)

    shift = sources.Shift(spied(contexts), spied(rollouts), is_endless=is_endless)
    source = dataclasses.replace(SOURCE, shifts=lambda: dict.fromkeys("abc", shift), rollouts=None)
    figures, rows, _ = looked("general", side(encode=told), n, source)
    assert [s["contexts"] for s in figures["shifts"].values()] == [3, 2, 2]
    assert rows["shifted_rank"]["samples"] == rows["shifted_error_added"]["samples"] == n
    starts = [frames[0] for frames, *_ in rollouts(n, PLANNER.horizon * BLOCK, 0)]
    if is_endless:  # draws of their own, and none in vain
        assert len({seed for *_, seed in asked}) == 3 and sum(given[0] for given in asked) == 2 * n
    else:
        assert {given[-1] for given in asked} == {0}
        assert all(seen[start.tobytes()] == 1 for start in starts)
        assert all(seen[part["pixels"].tobytes()] == 2 for pair in contexts(n, 0) for part in pair)


def test_a_curve_passes_a_threshold_between_steps():
    assert horizon.crossing(np.array([0.0, 0.5, 1.0]), 0.75) == 1.5
    assert horizon.crossing(np.array([0.0, 0.1, 0.2]), 0.75) == 2.0
    assert horizon.crossing(np.array([0.9, 1.0]), 0.75) == 0.0
    assert horizon.crossing(np.array([0.0, np.nan, 1.0]), 0.75) == 1.0


def test_auroc_of_known_samples():
    assert physics.auroc([1, 2, 3], [4, 5]) == 1.0 and physics.auroc([4, 5], [1, 2, 3]) == 0.0
    assert physics.auroc([1, 3], [2, 4]) == 0.75 and physics.auroc([1, 1], [1, 1]) == 0.5
    assert np.isnan(physics.auroc([1.0], [np.nan])) and np.isnan(physics.auroc([], [1.0]))


def test_what_is_imagined_stands_on_what_was_seen():
    actions, x = walked(np.random.default_rng(9), 3, 4 * BLOCK)
    z = x[:, ::BLOCK] @ BASIS
    blocks = actions.reshape(3, 4, ACTION)
    exact = side(predict=lambda z, a: predict(z, a) / 0.995)
    assert np.allclose(one_ahead(exact, z, blocks), z[:, 1:]) and np.allclose(follow(exact, z[:, :1], blocks), z)
    assert np.array_equal(follow(exact, z[:, :3], blocks)[:, :3], z[:, :3])
    assert np.allclose(sides.rollout(exact, z[0, 0], blocks), follow(exact, np.repeat(z[:1, :1], 3, 0), blocks))

"""A rate held from a proposal: which planners may begin at one, what is written, and what a student begins at."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import distill_world
import numpy as np
import pytest
import torch
from distill_world import LATENT, PLANNER
from rich.console import Console
from test_distill import SHAPE, SPOTS, TRAINING, small, spot
from test_proposal import SETTINGS, seeded_for
from torch import nn

from edgewm.console import distill_table
from edgewm.distill import budgets, choice, proposal_only, train, verb
from edgewm.distill.budgets import LIMIT, Budgets
from edgewm.distill.choice import Candidate
from edgewm.distill.shapes import planners
from edgewm.distill.teacher import Teacher, teacher_of
from edgewm.errors import EdgewmError
from edgewm.judge import plan
from edgewm.judge.lift import in_space_of
from edgewm.judge.sides import Side, start_of
from edgewm.judge.sources import Source
from edgewm.models import load
from edgewm.student import regret_of, search_of

OWN = replace(PLANNER, samples=128, elites=12, warm_start=True)


def begun(planner, **settings):
    return replace(planner, proposal=True, warm_start=False, **settings)


class Straight(nn.Module):
    """Goes to the goal at an even speed, or, `sign` -1, away from it: what the spot's world makes the best plan."""

    def __init__(self, sign: float = 1.0) -> None:
        super().__init__()
        turn = distill_world.make().turn
        self.register_buffer("back", sign * torch.linalg.pinv(turn) / PLANNER.horizon / distill_world.SPEED)
        self.register_buffer("std", torch.full((PLANNER.horizon, 2), 0.05))

    def forward(self, z, goal):
        return ((goal - z) @ self.back)[:, None].expand(-1, PLANNER.horizon, -1)


def proposing(sign: float = 1.0) -> Teacher:
    return teacher_of("spot", replace(spot().model, proposal=Straight(sign)), PLANNER, SPOTS)


# ------------------------------------------------------------------------------------------------- which planners


def test_a_search_from_a_good_proposal_loses_little_with_few_candidates_and_from_a_bad_one_much():
    few = replace(PLANNER, samples=4, elites=2, iterations=1)
    regret = budgets.regret(spot(), 0)
    loses, led_astray = (partial(regret, proposing(sign).side) for sign in (1.0, -1.0))
    assert loses(begun(few)) <= LIMIT < 0.2 < loses(few) < led_astray(begun(few))
    assert loses(PLANNER) == 0 and loses(few) == led_astray(few)


def planned(monkeypatch, losses, held=(), trains=True, own=OWN, model=None, source=SPOTS):
    """Budgets where planners lose what `losses` says (samples, iterations, whether from a proposal) and those of `held`
    samples hold the rate; and whether a proposal was trained."""
    asked = []

    def trained():
        asked.append(1)
        return replace(spot().model, planner=own, proposal=Straight()), {"regret": 0.1}

    def loses(teacher, seed):
        return lambda side, p: losses(p.samples, p.iterations, p.proposal)

    monkeypatch.setattr(budgets, "regret", loses)
    model = model or replace(spot().model, planner=own)
    found = budgets.budgets(
        "spot", model, list(planners(own)), source, 0, lambda m, p: p.samples in held, trained if trains else None
    )
    return found, bool(asked)


def test_those_that_begin_at_a_proposal_follow_the_blind_ones_that_are_as_good(monkeypatch):
    blind = list(planners(OWN))
    sizes = [(p.samples, p.iterations) for p in blind]
    assert sizes == [(128, 2), (64, 2), (32, 2), (16, 2), (16, 1)]

    def losses(samples, iterations, is_begun):
        return 1.0 / samples / (40 if is_begun else 1) * (2 / iterations) ** 5  # blind ones may have 40 samples or more

    found, is_trained = planned(monkeypatch, losses)
    assert is_trained and found.proposal == {"regret": 0.1} and found.model.proposal is not None
    assert found.groups == [[*blind[:2], *map(begun, blind[2:4])], [begun(blind[4])]]
    assert set(found.regrets) == {*blind[1:3], *map(begun, blind[2:])}  # those that were tried, no other
    for held, trains in (((64,), True), ((), False)):
        found, is_trained = planned(monkeypatch, losses, held, trains)
        assert not is_trained and found.model.proposal is None
        assert found.groups == [blind[:2], *([p] for p in blind[2:])]


def test_a_proposal_that_is_no_good_leaves_the_blind_ones_alone_in_their_group(monkeypatch):
    found, _ = planned(monkeypatch, lambda samples, iterations, is_begun: 1.0 if is_begun else 2.0 / samples)
    own, second, *rest = planners(OWN)
    assert found.groups == [[own], *([begun(p)] for p in (second, *rest))]


def test_a_proposal_that_is_there_is_taken_and_one_that_is_asked_for_trained(monkeypatch):
    own = replace(OWN, warm_start=False)
    there = replace(spot().model, planner=own, proposal=Straight())
    found, is_trained = planned(monkeypatch, lambda *a: 0.0 if a[2] else 1.0, own=own, model=there)
    assert not is_trained and [p.proposal for p in found.groups[0]] == [False, True, True, True, True]
    for model, trains in ((replace(there, planner=begun(own)), False), (None, True)):
        found, is_trained = planned(monkeypatch, lambda *a: 0.0, own=begun(own), model=model)
        assert is_trained == trains and all(p.proposal for p in found.groups[0]) and len(found.groups) == 1


def test_without_goals_the_planner_stands_alone(monkeypatch):
    found, is_trained = planned(monkeypatch, lambda *a: pytest.fail("nothing tells"), source=Source())
    assert found == Budgets(found.model, [[OWN]], {}) and not is_trained
    with pytest.raises(EdgewmError, match="brings no contexts"):
        proposal_only.with_trained("spot", spot().model, Source(), None, SETTINGS, None, None)


# ---------------------------------------------------------------------------------------------------- the verb


@pytest.fixture
def fast(monkeypatch):
    """Times by candidates alone, no bundle, no judge, and proposals that nobody trained."""

    def priced(shape, planner, form, model, board):
        ms = planner.samples * planner.iterations * (0.5 if shape else 1.0)
        return Candidate(shape, form, planner, {"point": ms, "low": ms, "high": ms}, "tensor")

    def trained(name, model, *rest):
        return replace(model, proposal=seeded_for(model)), {"regret": 0.1}

    figures = {"spearman_min": 0.99, "elite_overlap": 0.9, "regret": 0.01, "search_regret": 0.02}
    told = {"passed": True, "plan": figures, "closed_loop": None, "gates": []}
    monkeypatch.setattr(choice, "tick", priced)
    monkeypatch.setattr(verb, "tick", priced)
    monkeypatch.setattr(verb, "with_trained", trained)
    monkeypatch.setattr(verb, "build", lambda *a, **options: None)
    monkeypatch.setattr(verb, "validate", lambda *a, **options: told)
    monkeypatch.setattr(budgets, "regret", lambda *a: lambda side, p: 0.01 if p.proposal or p.samples > 64 else 1.0)
    return monkeypatch


def shown(found) -> str:
    text = io.StringIO()
    Console(file=text, width=220).print(distill_table(found))
    return text.getvalue()


ASKED = {"target": "orin", "precision": "fp32"}
RATE_HZ = 1e3 / (16 * 8)  # of 16 candidates in 8 iterations


def test_the_model_itself_from_a_proposal_is_a_model_like_any_other(fast, tmp_path):
    out = tmp_path / "out"
    dry = verb.distill("reference", rate_hz=RATE_HZ, dry_run=True, **ASKED)
    assert dry["student"] is None and "MODEL with the proposal, without --dry-run" in shown(dry)
    found = verb.distill("reference", rate_hz=RATE_HZ, out=out, **ASKED)
    assert found["chosen"] == dry["chosen"] and found["chosen"]["shape"] is None and found["student"] == str(out)
    assert f"{out}: passed the judge's gates; least Spearman 0.99" in shown(found).replace("\n", " ")
    undecided = {**found["verdict"], "passed": None, "gates": [{"name": "regret", "passed": None}]}
    assert "not enough evidence for regret; least Spearman" in shown({**found, "verdict": undecided}).replace("\n", " ")
    before, after = load("reference"), load(str(out))
    expected = {"samples": 16, "iterations": 8, "elites": 2, "proposal": True}
    assert after.planner == replace(before.planner, **expected) and after.proposal is not None
    assert (out / "weights.safetensors").read_bytes() == Path(_weights("reference")).read_bytes()
    assert search_of(found) == {**expected, "warm_start": False} and regret_of(found, found["chosen"]) == 0.01
    page = json.loads((out / "pareto.json").read_text())
    (told,) = (r for r in page["rows"] if r["state"] == "chosen")
    assert told["name"] == "the model itself, 16 x 8, from a proposal, fp32" and told["regret"] == 0.02
    assert {r["regret"] for r in page["rows"] if "itself, 16 x 8, from a proposal" in r["name"]} == {0.02}
    again = verb.distill("reference", rate_hz=RATE_HZ, out=out, resume=True, **ASKED)
    assert {**again, "verdict": None} == {**json.loads(json.dumps(found)), "verdict": None}
    slower = verb.distill(str(out), rate_hz=RATE_HZ / 2, dry_run=True, **ASKED)  # it has one: nothing is trained
    assert slower["proposal"] is None and slower["chosen"]["planner"]["samples"] == 16


def _weights(name: str) -> Path:
    return proposal_only.check_checkpoint(name) / "weights.safetensors"


def test_no_proposal_leaves_the_choice_as_it_would_be_without(fast, tmp_path):
    fast.setattr(verb, "with_trained", lambda *a: pytest.fail("nobody asked for one"))
    for planner in ({"proposal": False}, {"samples": 32, "elites": 4}):
        found = verb.distill("reference", rate_hz=RATE_HZ / 4, dry_run=True, planner=planner, **ASKED)
        assert found["proposal"] is None and not any(c["planner"]["proposal"] for c in found["considered"])
    fast.setattr(verb, "load", lambda name: replace(load("reference"), proposal=seeded_for(load("reference"))))
    found = verb.distill("reference", rate_hz=RATE_HZ / 8, dry_run=True, planner={"proposal": False}, **ASKED)
    assert not any(c["planner"]["proposal"] for c in found["considered"])


def test_a_rate_that_nothing_holds_is_refused_before_anything_is_trained(fast):
    fast.setattr(verb, "with_trained", lambda *a: pytest.fail("trained for nothing"))
    with pytest.raises(EdgewmError, match="no student plans 1000 times a second") as fault:
        verb.distill("reference", rate_hz=1e3, dry_run=True, **ASKED)
    assert "ask for at most 125 Hz" in fault.value.fix


def test_a_proposal_needs_a_checkpoint_to_lie_beside(fast):
    fast.setattr(verb, "with_trained", lambda *a: pytest.fail("it has no directory"))
    with pytest.raises(EdgewmError, match="a proposal lies beside a checkpoint"):
        verb.distill("distill_world:make", rate_hz=1.0, planner={"proposal": True}, dry_run=True, **ASKED)
    found = verb.distill("distill_world:make", rate_hz=1e3 / 16, dry_run=True, **ASKED)
    assert not any(c["planner"]["proposal"] for c in found["considered"])


# ---------------------------------------------------------------------------------------------------- a student


def test_a_student_begins_at_a_proposal_of_its_own(tmp_path):
    torch.set_num_threads(1)
    planner = begun(PLANNER, samples=8, elites=2)
    beginning = replace(SETTINGS, contexts=16, steps=20)
    teacher = replace(proposing(), planner=planner)
    narrow = replace(SHAPE, width=2)
    settings = small(shape=narrow, planner=planner, proposal=beginning, **{**TRAINING, "steps": 6})
    train.train(settings, teacher, tmp_path / "a", cache=tmp_path / "cache")
    model = load(str(tmp_path / "a"))
    assert model.planner == planner and model.latent_dim == 2
    assert model.proposal is not None and len(model.proposal.centre) == 2 < LATENT
    made = train.material(settings, teacher, tmp_path / "cache", lambda *a: None, print)
    for name, value in made.proposal.state_dict().items():
        assert torch.equal(value, model.proposal.state_dict()[name])
    student = train._side(model.torch, teacher, settings, made)
    z = made.space.of(made.banks[0]["latent"][0])
    assert np.allclose(student.propose(z, z)[0], model.proposal(*torch.from_numpy(z)[None].repeat(2, 1, 1))[0], atol=1)


# ------------------------------------------------------------------------------------------------------ the judge


def test_the_full_model_begins_where_a_bundle_does_and_a_bundle_of_fewer_latents_is_asked_in_its_own():
    side: Side = proposing().side
    full = replace(side, propose=None)
    planner = begun(PLANNER, iterations=1)
    (observation, goal), *_ = distill_world.contexts(1, 0)
    noises = np.zeros((2, 1, PLANNER.samples, PLANNER.horizon, 2), np.float32)
    planned = replace(side, plan=lambda *given: np.zeros((PLANNER.horizon, 2)))
    seen = plan.look(full, planned, planner, observation, goal, noises)
    z, target = side.encode(observation), side.encode(goal)
    mean, _ = side.propose(z, target)
    assert np.allclose(seen.full_plan, mean) and seen.blind_cost == pytest.approx(
        float(full.score(z, target, 0 * mean[None])[0])
    )
    double = replace(
        side, encode=lambda o: 2 * side.encode(o)[:2], propose=lambda z, goal: (z[None], goal[None]),
    )  # fmt: skip
    lifted = in_space_of(full, double, (o for o, _ in distill_world.contexts(40, 0)))
    given = lifted.propose(lifted.encode(observation), lifted.encode(goal))
    assert np.allclose(given[0][0], double.encode(observation)) and np.allclose(given[1][0], double.encode(goal))
    assert (
        in_space_of(full, replace(double, propose=None), (o for o, _ in distill_world.contexts(40, 0))).propose is None
    )
    assert start_of(full, z, target) == ()

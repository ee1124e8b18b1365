"""A proposal: where a search begins, in the plan's graph, in the judge's reading of it, on disk and in training."""

from __future__ import annotations

import importlib
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import distill_world
import fixtures_models as fixtures
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fixtures_models import exact_constants  # noqa: F401
from planning import drawn, no_state, noise_for, plan_rounding, proposing
from safetensors.torch import save_file

from edgewm.backends.files import graphs_of
from edgewm.cli import cli
from edgewm.console import _flag
from edgewm.distill import proposal, proposal_only
from edgewm.distill.teacher import Teacher, teacher_of
from edgewm.errors import EdgewmError
from edgewm.interp import run
from edgewm.judge.sides import search, upstream
from edgewm.judge.sources import Source
from edgewm.models import Model, capture_model, load, own
from edgewm.models.proposal import FILE, Proposal, with_proposal

UNIT = fixtures.UNIT_ROUNDOFF[np.float64]
KINDS = ({"kind": "cem"}, {"kind": "icem"}, {"kind": "icem", "return_mean": False}, {"kind": "mppi"})


@pytest.mark.usefixtures("exact_constants")
@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_a_search_begins_at_the_proposal_and_tries_it_first(settings):
    model = proposing()
    planner = replace(model.planner, **settings, samples=9, iterations=2)
    program = capture_model(model, planner, ("plan_with_noise", "propose"))
    given = drawn(model.ports_of("observation") + model.ports_of("goal"), 1) | no_state(program, model)
    given["noise"] = noise_for(program, 2)
    graph = program.entries["plan_with_noise"]
    assert "warm_mean" not in graph.inputs() and "warm_mean" not in graph.outputs
    found = run(graph, {n: given[n] for n in graph.inputs()}, program.weights, real=True)
    side = upstream(model, planner, "float64")
    z, goal = side.encode({"state": given["state"]}), side.encode({"state": given["goal"]})
    mean, std = side.propose(z, goal)
    looked = search(lambda c: side.score(z, goal, c), planner, given["noise"], mean, std)
    assert np.array_equal(looked.candidates[0, 0], np.clip(mean, -1, 1))
    tolerance = plan_rounding(planner, UNIT, float(np.abs(given["noise"]).max())) * 2**12  # of costs, through a softmax
    assert np.abs(found["actions"] - looked.mean).max() <= tolerance
    blind = search(lambda c: side.score(z, goal, c), planner, given["noise"])
    assert np.abs(blind.mean - looked.mean).max() > 0.01
    asked = run(program.entries["propose"], {"z": z[None], "goal": goal[None]}, program.weights, real=True)
    assert np.allclose(np.clip(asked["mean"], -1, 1), mean, atol=1e-6)


def test_one_candidate_is_the_proposal_itself():
    model = proposing()
    planner = replace(model.planner, samples=1, iterations=1, elites=1)
    program = capture_model(model, planner, ("plan",))
    given = drawn(model.ports_of("observation") + model.ports_of("goal"), 1) | no_state(program, model)
    graph = program.entries["plan"]
    found = run(graph, {n: given[n] for n in graph.inputs()}, program.weights)
    side = upstream(model, planner)
    mean, _ = side.propose(side.encode({"state": given["state"]}), side.encode({"state": given["goal"]}))
    assert np.allclose(found["actions"], mean, atol=1e-5) and np.isfinite(found["std"]).all()
    assert found["cost"].shape == (1,) and np.isfinite(found["cost"]).all()


@pytest.mark.parametrize(
    ("has_one", "settings", "what"),
    [
        (False, {}, "the model has no proposal"),
        (True, {"horizon": 3}, "the proposal is of 4 actions, the horizon of 3"),
        (True, {"warm_start": True}, "a warm start with a proposal"),
    ],
)
def test_proposals_that_make_no_plan(has_one, settings, what):
    model = proposing()
    model = model if has_one else replace(model, proposal=None)
    with pytest.raises(EdgewmError, match=what):
        capture_model(model, replace(model.planner, **settings), ("plan",))


# ------------------------------------------------------------------------------------------------- on disk, in training

SETTINGS = proposal.Settings(contexts=72, steps=80, batch=16, width=16, learning_rate=1e-2)


def spot() -> Teacher:
    return teacher_of(
        "spot", own.from_module(distill_world.make(), "spot"), distill_world.PLANNER,
        Source(contexts=distill_world.contexts, rollouts=distill_world.rollouts),
    )  # fmt: skip


def test_it_learns_to_plan_without_a_search_and_again_to_the_same_bits(tmp_path):
    cache = tmp_path / "cache"
    untrained = proposal.train(spot(), replace(SETTINGS, steps=0), cache)[1]
    found, worth = proposal.train(spot(), SETTINGS, cache)
    assert worth["regret"] < 0.5 * untrained["regret"] and worth["missed"] < 0.5 < untrained["missed"]
    assert worth["held_out"] == 9 and bool((found.std > 0).all())
    shutil.rmtree(cache / proposal.PLANS / "plans-0001-8")
    for name, kept in (("a", cache), ("b", None)):
        (tmp_path / name).mkdir()
        proposal.write(proposal.train(spot(), SETTINGS, kept)[0], tmp_path / name)
    assert (tmp_path / "a" / FILE).read_bytes() == (tmp_path / "b" / FILE).read_bytes()
    model = with_proposal(spot().model, tmp_path / "a")
    z = torch.randn(3, distill_world.LATENT)
    assert torch.equal(model.proposal(z, -z), found(z, -z)) and FILE in model.files
    with pytest.raises(EdgewmError, match=r"for latents of 4 and actions of 2 numbers, the model has 6 and 2"):
        with_proposal(proposing(), tmp_path / "a")
    save_file({"first.weight": torch.zeros(2, 2)}, tmp_path / "b" / FILE)
    with pytest.raises(EdgewmError, match="this is no proposal"):
        with_proposal(spot().model, tmp_path / "b")
    assert with_proposal(spot().model, tmp_path).proposal is None


def test_losses_that_are_no_numbers_are_told(monkeypatch):
    monkeypatch.setattr(Proposal, "forward", lambda self, z, goal: self.last.weight.sum() * z.new_full((), np.nan))
    with pytest.raises(EdgewmError, match="the loss is nan at step 0"):
        proposal.train(spot(), replace(SETTINGS, contexts=8))


def test_a_checkpoint_with_a_proposal_is_a_model_like_any_other(tmp_path, monkeypatch):
    small = {"contexts": 8, "steps": 2}
    monkeypatch.setattr(proposal_only, "Settings", lambda seed: replace(SETTINGS, seed=seed))
    monkeypatch.setattr(proposal_only, "train", lambda teacher, *a: (seeded_for(teacher.model), {"regret": 0.5}))
    told = proposal_only.distill_proposal("reference", out=tmp_path / "out", training=small)
    assert told["settings"]["contexts"] == 8 and told["proposal"] == str(tmp_path / "out")
    model, before = load(str(tmp_path / "out")), load("reference")
    assert model.planner == replace(before.planner, proposal=True) and model.proposal is not None
    assert model.ports == before.ports and before.proposal is None
    with pytest.raises(EdgewmError, match="no empty directory"):
        proposal_only.distill_proposal("reference", out=tmp_path / "out")
    for training, what in (({"contexts": 1}, "one context cannot"), ({"learning_rate": -1.0}, "learning_rate is -1")):
        with pytest.raises(EdgewmError, match=what):
            proposal_only.distill_proposal("reference", out=tmp_path / "other", training=training)
    with pytest.raises(EdgewmError, match="no such file"):
        proposal_only.distill_proposal("reference", out=tmp_path / "other", data=tmp_path / "none")
    with pytest.raises(EdgewmError, match="lies beside a checkpoint"):
        proposal_only.distill_proposal("planning:proposing", out=tmp_path / "other")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(EdgewmError, match="one process trains a proposal"):
        proposal_only.distill_proposal("reference", out=tmp_path / "other")


def seeded_for(model: Model) -> Proposal:
    return fixtures.seeded(Proposal(model.latent_dim, 4, model.planner.horizon, model.action_dim))


def told(*words: str) -> str:
    found = CliRunner().invoke(cli, ["distill", "reference", *words])
    return found.output if found.exception is None else str(found.exception)


def test_options_of_a_student_are_refused_for_a_proposal():
    assert "--rate-hz is for a student" in told("--proposal-only", "--rate-hz", "50")
    assert "--samples is for a student" in told("--proposal-only", "--samples", "5")
    assert "--planner is for a student" in told("--proposal-only", "--planner", "icem")
    assert "no rate to distil for" in told("--target", "orin")


def test_a_backend_begins_at_zero():
    model = proposing()
    program = capture_model(model, replace(model.planner, samples=4, iterations=1), ("plan_with_noise",))
    with pytest.raises(EdgewmError, match="a backend begins a search at zero"):
        graphs_of(program)


def test_shares_of_a_planners_candidates(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    proposals = importlib.import_module("proposals")
    whole = replace(proposing().planner, samples=128, iterations=8, elites=12)
    found = [[(p.samples, p.iterations, p.elites) for p in proposals.budgets(whole, Fraction(share))]
             for share in ("1", "1/20", "1/100", "0")]  # fmt: skip
    assert found == [[(128, 8, 12)], [(6, 8, 2), (26, 2, 2)], [(5, 2, 2)], [(1, 1, 1)]]


def test_every_setting_of_a_planner_is_told_as_build_takes_it():
    """What the line "no student is needed" prints, read by the command line itself."""
    whole = {"kind": "icem", "samples": 8, "elites": 2, "return_mean": False, "proposal": False, "warm_start": True,
             "var_scale": 0.5, "n_elite_keep": 2, "commit_steps": 5, "objective": "path"}  # fmt: skip
    words = " ".join(_flag(field, value) for field, value in whole.items()).split()
    with cli.commands["build"].make_context("build", ["reference", *words]) as context:
        assert {field: context.params[field] for field in whole} == whole

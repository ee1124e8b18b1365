"""Distillation: what is matched, what is kept on disk, a run that is killed and goes on, and every refusal."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import distill_world
import numpy as np
import pytest
import torch
from distill_world import LATENT, PLANNER, SIDE, Spot, contexts, make, rollouts
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors.numpy import load_file

from edgewm import expr as e
from edgewm import interp
from edgewm.cli import execute
from edgewm.console import distill_table
from edgewm.data import identity
from edgewm.distill import asked, budgets, choice, condition, losses, prune, states, targets, train, verb
from edgewm.distill.choice import Candidate, board_of, candidate_of, chosen, considered, tick, untrained
from edgewm.distill.fake_quant import formats_of, on_levels, rounded
from edgewm.distill.material import Settings
from edgewm.distill.processes import Processes
from edgewm.distill.proposal import Settings as Beginning
from edgewm.distill.proposal import gathered, searches
from edgewm.distill.shapes import Shape, as_model, briefly, config_of, jumping, of_teacher, planners, shapes
from edgewm.distill.space import Space, space_of
from edgewm.distill.teacher import Teacher, bank, check_fit, frames, held_out, teacher_of
from edgewm.errors import EdgewmError
from edgewm.judge.lift import in_space_of
from edgewm.judge.sides import upstream
from edgewm.judge.sources import ONE_IN, Source
from edgewm.models import capture_model, load, own, scoring, torch_world
from edgewm.passes import EXACT, run
from edgewm.passes.quantize_products import HOLD, is_on_levels, quantize_products, value_of
from edgewm.program import Graph, Planner, Program
from edgewm.quantize import SMALLEST_K, recipe_of
from edgewm.quantize.calibrate import calibrated
from edgewm.reference.model import build
from edgewm.rounding import UNIT_ROUNDOFF, rounding_steps
from edgewm.student import student_for

WAIT_S = 300  # far more than two processes take
SHAPE = Shape(LATENT, 1, 1, 8, 16, 16, 1, 8, 1, 1, 2.0, 16, 4)
TRAINING = {
    "steps": 24, "round_steps": 6, "frames": 48, "round_frames": 12, "contexts": 8, "round_contexts": 6, "held_out": 3,
    "step_contexts": 4, "step_frames": 8,
}  # fmt: skip
SPOTS = Source(contexts=contexts, rollouts=rollouts)


def quiet(stage: str, done: float) -> None:
    assert 0 <= done <= 1


def spot(source: Source = SPOTS, planner: Planner = PLANNER) -> Teacher:
    return teacher_of("spot", own.from_module(make(), "spot"), planner, source)


def small(**given) -> Settings:
    usual = {
        "shape": SHAPE, "planner": PLANNER, **TRAINING, "warmup_steps": 4,
    }  # fmt: skip
    return Settings(**{**usual, **given})


def sha(folder: Path) -> str:
    return hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("distill") / "cache"


@pytest.fixture(scope="module")
def straight(tmp_path_factory, cache) -> Path:
    """A run that nobody disturbed."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("distill") / "straight"
    train.train(small(), spot(), out, cache=cache, progress=quiet)
    return out


# ------------------------------------------------------------------------------------------------------ the losses


def seen(seed: int, contexts: int = 2, each: int = 9, horizon: int = 3) -> losses.Seen:
    g = torch.Generator().manual_seed(seed)
    goals, futures = (torch.randn(s, generator=g) for s in ((contexts, 4), (contexts, 2, each, horizon, 4)))
    costs = (futures[..., -1, :] - goals[:, None, None]).square().mean(-1)
    pictures, starts = torch.randn(5, 4, generator=g), torch.randn(contexts, 4, generator=g)
    return losses.Seen(pictures, starts, goals, futures, costs, torch.randn(futures.shape, generator=g))


FACTS = losses.Facts(torch.tensor(4.0), 3, torch.ones(4, 2))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.sampled_from([n for n in losses.TERMS if n != "elite"]))
def test_a_perfect_student_loses_nothing_and_another_does(seed, name):
    t, other = seen(seed), seen(seed + 1)
    rounding = torch.finfo(torch.float32).eps * t.costs[0, 0].numel() ** 2
    assert abs(float(losses.TERMS[name](t, t, FACTS))) <= rounding
    assert float(losses.TERMS[name](other, t, FACTS)) > rounding


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000))
def test_the_elite_term_falls_when_elites_are_told_apart_and_rises_when_swapped(seed):
    t = seen(seed)
    order = t.costs.argsort(-1)
    swapped = t.costs.clone()
    first, last = order[..., :1], order[..., -1:]
    swapped.scatter_(-1, first, t.costs.gather(-1, last)).scatter_(-1, last, t.costs.gather(-1, first))
    assert losses.elite(replace(t, costs=swapped), t, FACTS) > losses.elite(t, t, FACTS)


def test_what_all_candidates_share_is_no_counterfactual():
    t = seen(0)
    shifted = replace(t, futures=t.futures + 3.0)
    assert float(losses.counterfactual(shifted, t, FACTS)) < 1e-6 < float(losses.latent(shifted, t, FACTS))


def test_features_are_what_comes_before_a_latent_and_of_students_alike():
    """A student that is its teacher has the same; one that is narrower, or jumps, has none to compare."""
    teacher, shape = lewm_teacher(depth=2)
    module, starts = teacher.model.torch, torch.randn(2, 16)
    futures, features = train.rolled(module, starts, torch.randn(2, 3, 4, PLANNER.horizon, 2))
    assert futures.shape == features.shape == (2, 3, 4, PLANNER.horizon, 16)
    *first, last = module.pred_proj
    hidden = torch.nn.Sequential(*first)(features.flatten(0, -2))
    rounding = 2 * torch.finfo(torch.float32).eps * (16 + 32) * (hidden.abs() @ last.weight.abs().T + last.bias.abs())
    assert ((last(hidden) - futures.flatten(0, -2)).abs() <= rounding).all() and not module.predictor._forward_hooks
    asked = small(shape=shape, weights=losses.weighing(["features"]))
    for other in (replace(shape, width=8, heads=1), replace(shape, window=1, jump=2)):
        with pytest.raises(EdgewmError, match="no features like its"):
            train.begun(replace(asked, shape=other), teacher, None)


def test_terms_without_weight_are_left_out():
    t, other = seen(0), seen(1)
    loss, terms = losses.total(other, t, FACTS, {"rank": 2.0, "latent": 0.0})
    assert list(terms) == ["rank"] and float(loss) == pytest.approx(2 * float(terms["rank"]))


# --------------------------------------------------------------------------------------------- space, start, rounding


def test_fewer_latents_keep_the_costs_of_a_teacher_whose_latents_are_flat():
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(12, 12)))[0][:3]
    z, goal, futures = rng.normal(size=(80, 3)) @ turn, rng.normal(size=(2, 3)) @ turn, rng.normal(size=(2, 3, 5, 4, 3))
    futures = futures @ turn
    costs = 7.0 * np.square(futures[:, :, :, -1] - goal[:, None, None]).mean(-1)
    for width in (12, 3):
        space = space_of(z, width, goal, futures, costs)
        mine = np.square(space.of(futures)[:, :, :, -1] - space.of(goal)[:, None, None]).mean(-1)
        assert np.allclose(mine, costs, rtol=1e-4) and space.kept == pytest.approx(1.0)


def lewm(width=16, depth=3, window=2, seed=0) -> tuple[torch.nn.Module, Shape]:
    shape = Shape(width, depth, 2, 8, 2 * width, 2 * width, window, width, 2, 2, 2.0, 2 * width, 4)
    torch.manual_seed(seed)
    module = build(config_of(shape, own.from_module(make(), "spot"))).eval()
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=0.15)
    return module.requires_grad_(False), shape


def lewm_teacher(**sizes) -> tuple[Teacher, Shape]:
    module, shape = lewm(**sizes)
    spot_model = own.from_module(make(), "spot")
    return teacher_of("lewm", as_model(module, spot_model, PLANNER), PLANNER, SPOTS), shape


def test_the_teachers_shape_is_read_from_it_and_comes_first():
    teacher, shape = lewm_teacher()
    assert of_teacher(teacher.model) == shape == next(shapes(shape))
    assert all(s.encoder_width == shape.encoder_width for s in shapes(shape))
    slim = [s for s in shapes(shape) if s.width == shape.width and s.mlp_dim < shape.mlp_dim]
    assert {(s.heads, s.mlp_dim, s.proj_dim) for s in slim} == {(shape.heads // 2, shape.mlp_dim // 2, shape.proj_dim)}
    assert all(prune.begins_as(s, teacher.model) for s in slim)


def test_rivals_are_those_that_none_beats_in_everything():
    """Against all pairs: what is dropped is no larger than another that holds the rate, and rounds no less."""
    own, half = lewm(depth=2)[1], replace(PLANNER, samples=PLANNER.samples // 2)
    forms = ("fp32", "w8a8")
    everything = [
        Candidate(s, form, p, {"high": (s.step_weights + 800) * p.samples * (1.0 if form == "fp32" else 0.4)}, "x")
        for s in shapes(own) for p in (PLANNER, half) for form in forms
    ]  # fmt: skip
    for slowest in sorted({c.tick_ms["high"] for c in everything})[::5]:
        rate_hz = 1e3 / slowest * (1 - 1e-9)
        kept = choice.rivals(everything, rate_hz)
        held = [c for c in everything if choice.meets(c, rate_hz)]
        for c in held:
            above = [k for k in kept if k.shape.holds(c.shape) and k.planner.samples >= c.planner.samples
                     and forms.index(k.precision) <= forms.index(c.precision)]  # fmt: skip
            assert above and (c not in kept or above == [c])


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_all_rivals_are_found_without_pricing_all(orin, monkeypatch, share):
    model = lewm_teacher(depth=3)[0].model
    own, half, asked = of_teacher(model), replace(PLANNER, samples=PLANNER.samples // 2), []
    order = choice.students_of(model)
    assert [s.width for s in order] == sorted((s.width for s in order), key=lambda width: width != own.width)

    def priced(shape, planner, form, *rest):
        work = (shape or own).step_weights / (shape or own).jump + 1e3
        ms = work * planner.samples * {"fp32": 1.0, "bf16": 0.8, "w8a8": 0.4}[form]
        asked.append(Candidate(shape, form, planner, {"high": ms}, "nothing"))
        return asked[-1]

    everything = [priced(*t) for t in itertools.product(order, (PLANNER, half), ("fp32", "bf16", "w8a8"))]
    highest = share * priced(None, half, "w8a8").tick_ms["high"]
    asked.clear()
    monkeypatch.setattr(choice, "tick", priced)
    found = considered(model, orin, 1e3 / highest, "auto", [[PLANNER, half]], every=True)
    assert choice.rivals(found, 1e3 / highest) == choice.rivals(everything, 1e3 / highest)
    assert len(asked) == len({(c.shape, c.planner, c.precision) for c in asked}) < len(everything) // 2


def test_a_narrow_student_sees_what_its_teacher_sees():
    teacher, shape = lewm_teacher()
    rng = np.random.default_rng(1)
    pictures = rng.integers(0, 256, (64, 1, SIDE, SIDE, 3), np.uint8)
    z = np.stack([teacher.side.encode({"pixels": p}) for p in pictures])
    space = space_of(z, 8, z[:2], z[None, None, None, :2].repeat(2, 0), np.ones((2, 1, 1)))
    student = build(config_of(replace(shape, width=8, heads=1, mlp_dim=16, proj_dim=16), teacher.model)).eval()
    assert prune.take_encoder(student, teacher, space)
    side = upstream(as_model(student, teacher.model, PLANNER), PLANNER)
    own_z = np.stack([side.encode({"pixels": p}) for p in pictures])
    unit = 2 * shape.encoder_proj_dim * np.finfo(np.float32).eps  # the longest sum, on either side
    assert np.abs(own_z - space.of(z)).max() <= unit * np.abs(z).max() * space.scale * 16**0.5


def test_a_whole_predictor_is_taken_over_and_the_least_worthy_layer_left_out():
    teacher, shape = lewm_teacher()
    teacher.model.torch.predictor.blocks[1].modulation[-1].weight.zero_()
    teacher.model.torch.predictor.blocks[1].modulation[-1].bias.zero_()  # a layer that does nothing
    teacher = teacher_of("lewm", teacher.model, PLANNER, SPOTS)
    held = held_out(teacher, 2, 0)
    z = held["latent"]
    space = space_of(z, 16, z, z[None, None, None].repeat(2, 0), np.full((2, 1, 1), 1.0))
    space = replace(space, scale=1.0)
    kept, worth = prune.layers(teacher, held, 2)
    assert kept == [0, 2] and worth[1] == 0.0
    student = build(config_of(replace(shape, depth=2), teacher.model)).eval()
    assert prune.take_encoder(student, teacher, space) and prune.take_predictor(student, teacher, space, held)
    side = upstream(as_model(student, teacher.model, PLANNER), PLANNER)
    own = side.score(z[0], z[1], held["candidates"][0][0])
    assert np.array_equal(own, teacher.side.score(z[0], z[1], held["candidates"][0][0]))


def test_few_numbers_say_to_all_layers_what_an_action_is():
    """An action has two axes here, so few directions hold all that modulations vary by, and one does not."""
    teacher, shape = lewm_teacher(width=80, depth=2)
    model = teacher.model
    assert condition.numbers_of(model) == SMALLEST_K and of_teacher(model).condition is None
    assert briefly(shape, 80) == shape and shape.holds(briefly(shape, SMALLEST_K))
    few, one = (briefly(shape, n) for n in (SMALLEST_K, 1))
    assert few.step_weights < shape.step_weights and not few.holds(shape)
    rng = np.random.default_rng(0)
    candidates = rng.uniform(-1, 1, (40, PLANNER.horizon, 2)).astype(np.float32)
    z, goal = rng.standard_normal((2, 80)).astype(np.float32)
    held = {"latent": z[None], "goal_latent": goal[None], "candidates": candidates[None, None]}
    held["costs"] = teacher.side.score(z, goal, candidates)[None, None]
    unit = Space(np.zeros(80, np.float32), np.eye(80, dtype=np.float32), 1.0, 1.0)
    off = {}
    for said in (few, one):
        student = build(config_of(said, model)).eval().requires_grad_(False)
        prune.take_predictor(student, teacher, unit, held)
        assert of_teacher(as_model(student, model, PLANNER)) == said
        costs = upstream(as_model(student, model, PLANNER), PLANNER).score(z, goal, candidates)
        off[said.condition] = float(np.abs(costs - held["costs"]).max() / held["costs"].std())
    assert off[SMALLEST_K] < 0.01 < 0.1 < off[1]
    student = as_model(student, model, PLANNER)
    assert condition.numbers_of(student) == 1 and condition.numbers_of(own.from_module(make(), "spot")) == LATENT
    again = build(config_of(one, model)).eval().requires_grad_(False)
    prune.take_predictor(again, replace(teacher, model=student), unit, held)
    mine, its = again.state_dict(), student.torch.state_dict()
    assert all(torch.equal(mine[k], its[k]) for k in mine if k.startswith("action_encoder.") or ".modulation." in k)


def test_a_fresh_predictor_begins_with_nothing_changes():
    shape = lewm(width=16)[1]
    student = build(config_of(shape, own.from_module(make(), "spot"))).eval()
    latents = np.random.default_rng(0).normal(size=(200, 16)) @ np.diag(np.linspace(2, 0.2, 16))
    latents = latents.astype(np.float32)

    def missed(module: torch.nn.Module) -> float:
        with torch.no_grad():
            z = torch.from_numpy(latents)
            found = module.predict(z[:, None], torch.ones(len(z), 1, 2))[:, 0]
        return float((found - z).square().sum() / z.square().sum())

    before = missed(student)
    prune.stand_still(student, latents)
    assert missed(student) < 0.2 < 0.5 < before
    narrow = build(config_of(replace(shape, proj_dim=16), own.from_module(make(), "spot"))).eval()
    kept = missed(narrow)
    prune.stand_still(narrow, latents)
    assert missed(narrow) == kept


def test_heads_and_channels_that_matter_stay():
    wide, shape = lewm()
    source = wide.predictor.blocks[0]
    source.attn.proj.weight[:, :8] = 0.0  # the first head says nothing
    source.mlp[0].weight[5:] = 0.0
    source.mlp[0].bias[5:] = 0.0
    slim = build(config_of(replace(shape, heads=1, mlp_dim=5), own.from_module(make(), "spot"))).eval()
    target = slim.predictor.blocks[0]
    with torch.no_grad():
        prune.narrow(target, source)
        x, c = torch.randn(3, 2, 16), torch.randn(3, 2, 16)
        assert torch.allclose(target(x, c, is_causal=True), source(x, c, is_causal=True), atol=1e-5)


def test_channels_that_stay_make_up_for_those_that_go_as_far_as_they_tell():
    """The hidden channels come in pairs that say the same here, so half of them say it all, where one knows that."""
    teacher, shape = lewm_teacher(depth=2)
    full = teacher.model.torch
    for block in full.predictor.blocks:
        first = block.mlp[0]
        first.weight[1::2], first.bias[1::2] = first.weight[::2], first.bias[::2]
        block.attn.proj.weight[:, 8:] = 0.0  # the second head says nothing
    rng = np.random.default_rng(0)
    z, goal = rng.standard_normal((2, 16)).astype(np.float32)
    candidates = rng.uniform(-1, 1, (60, PLANNER.horizon, 2)).astype(np.float32)
    held = {"latent": z[None], "costs": np.zeros((1, 1)), "candidates": candidates[None, None]}
    read = prune.inputs_of(teacher, held, [0, 1], shape.window)
    assert {k: len(middle) for k, (middle, _) in read.items()} == {"0.attn": 16, "0.mlp": 32, "1.attn": 16, "1.mlp": 32}
    teacher = replace(teacher, side=upstream(teacher.model, PLANNER))
    off = []
    for known in (read, {}):
        slim = build(config_of(replace(shape, heads=1, mlp_dim=16), teacher.model)).eval().requires_grad_(False)
        slim.load_state_dict({k: v for k, v in full.state_dict().items() if "blocks." not in k}, strict=False)
        for i, (target, source) in enumerate(zip(slim.predictor.blocks, full.predictor.blocks, strict=True)):
            prune.narrow(target, source, known.get(f"{i}.attn"), known.get(f"{i}.mlp"))
        own = upstream(as_model(slim, teacher.model, PLANNER), PLANNER).score(z, goal, candidates)
        costs = teacher.side.score(z, goal, candidates)
        off.append(float(np.abs(own - costs).max() / costs.std()))
    assert off[0] < 0.01 < 0.1 < off[1]


@pytest.mark.parametrize("form", ["w8a8", "w4a8", "w4a16_g32", "bf16", "fp8"])
def test_a_layer_is_rounded_in_training_as_the_oracle_says(form):
    layer, x = torch.nn.Linear(64, 5), torch.randn(7, 3, 64)
    exact = layer(x)
    with rounded(torch.nn.ModuleDict({"only": layer}), {"only": form}):
        inside = layer(x)
        inside.sum().backward()
    assert torch.equal(layer(x), exact)
    w = layer.weight.detach().numpy().T
    product = Graph({"y": e.matmul(e.input("x", (21, 64)), e.weight("w", w.shape))})
    program = quantize_products(Program({"f": product}, {"w": w}, recipe={"w": form}))
    built = interp.run(program.entries["f"], {"x": x.reshape(21, 64).numpy()}, program.weights)["y"]
    found = (inside - layer.bias).detach().reshape(21, 5).numpy()
    apart = rounding_steps(program.entries["f"]) * UNIT_ROUNDOFF * np.abs(x.reshape(21, 64).numpy()) @ np.abs(w)
    assert np.all(np.abs(found - built) <= apart)
    assert np.abs(built - (exact - layer.bias).detach().reshape(21, 5).numpy()).max() > apart.max()
    assert layer.weight.grad.abs().min() > 0


def test_a_student_is_rounded_in_training_as_its_bundle_is():
    """Costs of candidates, but for the few of which an activation lies where float32 alone turns it over; with norms
    that scale nothing, which a bundle would fold into the products beside them."""
    model = own.from_module(make(), "spot")
    shape = Shape(64, 1, 2, 32, 128, 64, 1, 8, 1, 1, 2.0, 16, 4, 2)
    module = untrained(shape, model, PLANNER).torch
    for norm in (m for m in module.modules() if isinstance(m, torch.nn.BatchNorm1d)):
        norm.eps = 0.0
    formats = formats_of(shape, model, PLANNER, "w4a8")
    assert {"w4a8", "bf16"} == set(formats.values()) and all(n.startswith(("pred", "action")) for n in formats)
    exact = run(capture_model(as_model(module, model, PLANNER), PLANNER, ("score",)), EXACT)
    program = quantize_products(exact.with_(recipe=recipe_of(exact, "w4a8")))
    rng = np.random.default_rng(0)
    z, goal = rng.standard_normal((2, 1, 64), np.float32)
    candidates = rng.uniform(-1, 1, (PLANNER.samples, PLANNER.horizon, 2)).astype(np.float32)
    asked = {"z": z, "goal": goal, "candidates": candidates}
    built = interp.run(program.entries["score"], asked, program.weights)["cost"]
    given = [torch.from_numpy(x) for x in asked.values()]
    with rounded(module, formats), torch.no_grad():
        inside = scoring.score(module, *given).numpy()
    with torch.no_grad():
        plain = scoring.score(module, *given).numpy()
    apart = rounding_steps(program.entries["score"]) * UNIT_ROUNDOFF * np.abs(built)
    assert np.median(np.abs(inside - built) / apart) <= 1 < np.median(np.abs(plain - built) / apart)


def test_weights_on_their_levels_need_nothing_to_plan_from():
    """The second time, steps and levels are those of the first, to the bit."""
    for form in ("w4a8", "w4a16_g32", "w4a16_g64"):
        layer = torch.nn.Linear(64, 33)
        before = layer.weight.detach().clone()
        assert not is_on_levels(before.numpy().T, form)
        on_levels(torch.nn.ModuleDict({"only": layer}), {"only": form})
        w = layer.weight.detach().numpy().T
        assert is_on_levels(w, form) and not np.array_equal(w, before.numpy().T)
        first = HOLD[form].hold(w, None)
        second = HOLD[form].hold(value_of(first, form), None)
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
        program = Program({"score": Graph({"y": e.matmul(e.input("x", (1, 64)), e.weight("w", w.shape))})}, {"w": w})
        named = program.with_(recipe={"w": form})
        assert calibrated(named, "no such model") is named


# ----------------------------------------------------------------------------------------------------------- jumps


def jumping_lewm(jump: int) -> torch.nn.Module:
    shape = replace(lewm(width=16, depth=2)[1], window=1, depth=2, jump=jump)
    return untrained(shape, own.from_module(make(), "spot"), PLANNER).torch


def test_a_jump_sees_one_latent_and_the_actions_since():
    module, z, actions = jumping_lewm(3), torch.randn(4, 1, 16), torch.randn(4, 7, 2)
    with torch.no_grad():
        latents = module.rollout(z, actions)
        for t in range(1, 8):
            begin = max(0, t - 3)
            alone = module.predict(latents[:, begin : begin + 1].expand(-1, t - begin, -1), actions[:, begin:t])
            assert torch.equal(latents[:, t], alone[:, 0])
        later = actions.clone()
        later[:, 4:] += 1.0
        changed = module.rollout(z, later)
    assert torch.equal(changed[:, :5], latents[:, :5]) and not torch.equal(changed[:, 5], latents[:, 5])


def test_a_jump_takes_fewer_calls_and_costs_the_same_compiled():
    model, planner = own.from_module(make(), "spot"), replace(PLANNER, horizon=3)
    rng = np.random.default_rng(0)
    z, goal = rng.standard_normal((2, 1, 16), np.float32)
    candidates = rng.uniform(-1, 1, (planner.samples, 3, 2)).astype(np.float32)
    calls = {}
    for jump in (1, 2, 3):
        module = jumping_lewm(jump)
        program = run(capture_model(as_model(module, model, planner), planner, ("score",)), EXACT)
        graph = program.entries["score"]
        calls[jump] = sum("pred_proj.0" in name for n in graph.order() for name in [_weight(n)])
        found = interp.run(graph, {"z": z, "goal": goal, "candidates": candidates}, program.weights)["cost"]
        with torch.no_grad():
            cost = scoring.score(module, *(torch.from_numpy(x) for x in (z, goal, candidates))).numpy()
        apart = rounding_steps(graph) * UNIT_ROUNDOFF * np.abs(cost)
        assert np.all(np.abs(found - cost) <= apart)
    assert calls == {1: 3, 2: 2, 3: 1}


def _weight(node) -> str:
    return node.sources[1]["name"] if node.op == "matmul" and node.sources[1].op == "weight" else ""


def test_a_jump_is_offered_where_it_saves_a_call_and_begins_with_its_teachers_layers():
    shape = replace(lewm()[1], window=1)
    found = list(jumping([replace(shape, window=2), shape], 5))
    assert [(s.window, s.jump) for s in found] == [(2, 1), (1, 1), (1, 2), (1, 3), (1, 5)]
    assert shape.holds(found[-1]) and not found[-1].holds(shape)
    source, target = (build(config_of(s, own.from_module(make(), "spot"))) for s in (shape, found[-1]))
    with torch.no_grad():
        prune.widen(target.action_encoder, source.action_encoder)
        actions = torch.randn(3, 2)
        apart = torch.finfo(torch.float32).eps * 5 * 2 * 64
        assert (target.action_encoder(actions.repeat(1, 5)) - source.action_encoder(actions)).abs().max() <= apart


# ------------------------------------------------------------------------------------------------------- on disk


def test_a_shard_is_made_once_and_again_where_it_was_cut_off_or_changed(tmp_path):
    made, told = [], []

    def make_it():
        made.append(1)
        return {"x": np.arange(6.0)}

    targets.open_folder(tmp_path, {"of": 1})
    for _ in range(2):
        found = targets.shard(tmp_path, "a", make_it, told.append)
    assert isinstance(found["x"], np.memmap) and len(made) == 1 and not told
    (tmp_path / "a" / targets.SUMS).unlink()  # cut off before its end
    targets.shard(tmp_path, "a", make_it, told.append)
    assert len(made) == 2 and "interrupted" in told[-1]
    file = tmp_path / "a" / "x.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert np.array_equal(targets.shard(tmp_path, "a", make_it, told.append)["x"], np.arange(6.0))
    assert len(made) == 3 and "damaged" in told[-1]
    with pytest.raises(EdgewmError, match="another teacher's targets"):
        targets.open_folder(tmp_path, {"of": 2})


def test_a_damaged_state_is_passed_over_and_two_are_kept(tmp_path):
    for step in (1, 2, 3):
        states.keep(tmp_path, step, {"w": torch.full((3,), float(step))}, {"note": step})
    assert [p.name for p in states.kept(tmp_path)] == ["state-000002", "state-000003"]
    told = []
    assert states.newest(tmp_path, told.append)[1] == {"note": 3, "step": 3} and not told
    with (tmp_path / "state-000003" / states.TENSORS).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x07")
    tensors, facts = states.newest(tmp_path, told.append)
    assert facts["step"] == 2 and float(tensors["w"][0]) == 2.0 and "damaged" in told[0]


# -------------------------------------------------------------------------------------------------------- the run


def run_and_die(settings: Settings, out: Path, cache: Path, after_s: float) -> bool:
    """Goes on with the run in a child that is killed after so long; whether it had ended before."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            train.train(settings, spot(), out, cache=cache, resume=True)
            os._exit(0)
        except BaseException:
            os._exit(3)
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFEXITED(status)


def test_a_log_that_was_cut_off_goes_on_where_it_was_whole(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 6}\n{"step": 12}\n{"step": 18}\n{"ste')
    train.keep_log(log, 12)
    assert log.read_text() == '{"step": 6}\n{"step": 12}\n'


def test_a_run_killed_at_drawn_moments_ends_in_the_same_bits(tmp_path, straight, cache):
    rng = np.random.default_rng(5)
    out = tmp_path / "killed"
    for _ in range(10):
        if run_and_die(small(), out, cache, float(rng.uniform(0.02, 0.5))):
            break
    train.train(small(), spot(), out, cache=cache, resume=True)
    assert sha(out) == sha(straight)
    assert [json.loads(x)["step"] for x in (out / "log.jsonl").read_text().splitlines()] == [6, 12, 18, 24]


def test_the_seed_matters_and_so_would_a_forgotten_moment(tmp_path, straight, cache):
    train.train(small(), spot(), tmp_path / "a", cache=cache, stop_after=12)
    _, facts = states.newest(tmp_path / "a" / train.RUN, pytest.fail)
    tensors, _ = states.newest(tmp_path / "a" / train.RUN, pytest.fail)
    forgotten = {k: torch.zeros_like(v) if "exp_avg_sq" in k else v for k, v in tensors.items()}
    states.keep(tmp_path / "a" / train.RUN, 12, forgotten, facts)
    train.train(small(), spot(), tmp_path / "a", cache=cache, resume=True)
    assert sha(tmp_path / "a") != sha(straight)


@pytest.mark.parametrize("precision", ["fp32", "w8a8"])
def test_products_in_bf16_learn_and_go_on_in_the_same_bits(tmp_path, cache, precision):
    mixed, out = small(mixed=True, precision=precision, steps=12), tmp_path / "mixed"
    train.train(mixed, spot(), out, cache=cache, stop_after=6)
    history = train.train(mixed, spot(), out, cache=cache, resume=True)["history"]
    whole = train.train(mixed, spot(), tmp_path / "whole", cache=cache)["history"]
    assert history == whole and sha(out) == sha(tmp_path / "whole")
    exact = train.train(small(precision=precision, steps=12), spot(), tmp_path / "exact", cache=cache)["history"]
    off, left = (abs(h[-1]["loss_latent"] - exact[-1]["loss_latent"]) for h in (history, [exact[0]]))
    assert 0 < off < left  # rounding takes less than a round of learning brings
    assert all(x.dtype == np.float32 for x in load_file(out / "weights.safetensors").values())


def test_it_learns_and_is_a_checkpoint(straight):
    history = [json.loads(line) for line in (straight / "log.jsonl").read_text().splitlines()]
    assert history[-1]["loss_encode"] < history[0]["loss_encode"]
    model = load(str(straight))
    assert model.family == torch_world.FAMILY and model.planner == PLANNER
    assert model.ports_of("action")[0].safe == (0.0, 0.0)


def test_it_stops_when_the_rank_no_longer_rises(tmp_path, cache, monkeypatch):
    ranks = iter([0.5, 0.4, 0.3, 0.6])
    figures = {"spearman_min": 0.0, "spearman_median": 0.0, "elite_overlap": 0.0, "regret": 0.0}
    monkeypatch.setattr(train.fidelity, "look", lambda *a: {**figures, "rank": next(ranks)})
    facts = train.train(small(patience=2), spot(), tmp_path / "x", cache=cache)
    assert facts["step"] == 18 and facts["best_rank"] == 0.5


def test_losses_that_are_no_numbers_stop_the_run_and_the_best_stays(tmp_path, cache, monkeypatch):
    out = tmp_path / "nan"
    train.train(small(), spot(), out, cache=cache, stop_after=6)
    before, state = sha(out), [p.name for p in states.kept(out / train.RUN)]
    monkeypatch.setattr(losses, "total", lambda s, *a: (s.futures.sum() * float("nan"), {}))
    with pytest.raises(EdgewmError, match="loss is nan at step 6"):
        train.train(small(), spot(), out, cache=cache, resume=True)
    assert sha(out) == before and [p.name for p in states.kept(out / train.RUN)] == state


def test_a_full_disk_is_told_and_the_run_goes_on_afterwards(tmp_path, straight, cache, monkeypatch):
    out, real = tmp_path / "full", os.fsync
    calls = iter(range(1000))

    def fsync(handle):
        if next(calls) == 9:  # in the second state
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(EdgewmError, match="No space left"):
        train.train(small(), spot(), out, cache=cache)
    monkeypatch.setattr(os, "fsync", real)
    train.train(small(), spot(), out, cache=cache, resume=True)
    assert sha(out) == sha(straight)


def test_two_runs_in_one_directory_are_refused(tmp_path, straight, cache):
    with pytest.raises(EdgewmError, match="already holds a run"):
        train.train(small(), spot(), straight, cache=cache)
    with states.alone(tmp_path / "run"), pytest.raises(EdgewmError, match="another run is at work"):
        train.train(small(), spot(), tmp_path, cache=cache)


def in_two_processes(work: Callable[[int], object]) -> None:
    """As torchrun starts them, on a port that nobody else has; both must end well, and one that waits for ever does
    not."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(2):
        if (child := os.fork()) == 0:
            try:
                at = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                os.environ.update(at)
                torch.set_num_threads(1)
                signal.alarm(WAIT_S)
                work(rank)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(3)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]


def test_the_first_process_chooses_for_all_and_its_refusal_is_everyones(tmp_path, monkeypatch):
    """One that chose for itself would say `w8a8`."""

    def considered(model, board, rate_hz, precision, groups, *rest, every):
        mine = "bf16" if os.environ["RANK"] == "0" else "w8a8"
        return [Candidate(None, mine, next(iter(groups))[0], {"high": 1e3 / rate_hz if rate_hz < 99 else 1e3}, "x")]

    def work(rank: int) -> None:
        options = {"target": "orin", "dry_run": True, "planner": {"samples": 8}}
        with Processes.here() as share:  # once: who meets again at a port may meet the store that is closing there
            found = verb.distill("distill_world:make", rate_hz=10.0, **options)
            (tmp_path / str(rank)).write_text(json.dumps(found["chosen"]))
            assert share.first_says(lambda: [rank, None, "é"]) == [0, None, "é"]
            share.check_alike(6, "the step", "out")
            with pytest.raises(EdgewmError, match="the step is 0 in the first process and another in others"):
                share.check_alike(rank, "the step", "out")
            mine = torch.full((2,), float(rank + 5))
            share.as_first([mine])
            assert mine.tolist() == [5.0, 5.0]
            with pytest.raises(EdgewmError, match="no student plans 99 times") as fault:
                verb.distill("distill_world:make", rate_hz=99.0, **options)
            assert "ask for at most" in fault.value.fix

    monkeypatch.setattr(verb, "considered", considered)
    in_two_processes(work)
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text() and "bf16" in (tmp_path / "1").read_text()


def test_one_of_several_processes_tells(monkeypatch, capsys, tmp_path):
    said = {"verdict": {"passed": False}, "chosen": 1}
    monkeypatch.setattr("edgewm.distill.distill", lambda model, **options: said)
    monkeypatch.setattr("edgewm.console.distill_table", lambda result: "the table")
    for rank, status, shown in (("0", 1, "the table"), ("1", 0, "")):
        monkeypatch.setenv("RANK", rank)
        assert execute(["distill", "reference", "--rate-hz", "9", "--json", str(tmp_path / rank)]) == status
        assert capsys.readouterr().out.strip() == shown and (tmp_path / rank).exists() == bool(shown)


def test_two_processes_have_the_loss_curve_of_one(tmp_path, cache):
    """Rounding alone lies between them while no student's planner chooses: sums are taken in two parts."""
    settings = small(round_steps=24)
    train.train(settings, spot(), tmp_path / "one", cache=cache)

    def work(rank: int) -> None:
        if rank:  # what it would see itself decides nothing
            train.fidelity.look = train.keep_log = pytest.fail
        train.train(settings, spot(), tmp_path / "two", cache=cache)

    in_two_processes(work)
    one, two = (json.loads((tmp_path / name / "log.jsonl").read_text()) for name in ("one", "two"))
    rows = 4 * 12 * PLANNER.horizon  # of a step's longest sum: contexts, candidates, steps
    terms = [name for name in one if name.startswith("loss")]
    tolerance = rows * settings.steps * float(np.finfo(np.float32).eps)
    assert len(terms) > 3 and all(two[name] == pytest.approx(one[name], rel=tolerance) for name in terms)


# ---------------------------------------------------------------------------------------------- refusals and the verb


def test_a_teacher_that_cannot_foresee_is_refused(monkeypatch):
    assert check_fit(spot())["explained_at_horizon"] > 0.9
    monkeypatch.setattr(Spot, "predict", lambda self, z, a: 3 * z[:, -1])
    with pytest.raises(EdgewmError, match="foresees too little"):
        check_fit(spot())


@pytest.mark.parametrize(
    ("source", "planner", "what"),
    [
        (Source(contexts=contexts), PLANNER, "brings no rollouts"),
        (SPOTS, replace(PLANNER, history=2), "looks at 2 frames"),
        (SPOTS, replace(PLANNER, objective="path"), "the objective is path"),
    ],
)
def test_teachers_that_cannot_be_distilled(source, planner, what):
    with pytest.raises(EdgewmError, match=what):
        spot(source, planner)


def test_too_little_data_says_how_much_is_needed(tmp_path):
    few = Source(contexts=lambda n, seed: contexts(min(n, 5), seed), rollouts=rollouts)
    with pytest.raises(EdgewmError, match="5 contexts, 8 are needed"):
        train.train(small(), spot(few), tmp_path, cache=tmp_path / "cache")


def test_what_was_recorded_must_be_as_much_as_a_run_takes(tmp_path):
    """However often it can be drawn."""
    for there, what, option in (({"contexts": 5}, "5 recorded contexts, 8", "--contexts 5"),
                                ({"frames": 47}, "47 recorded frames, 48", "--frames 47")):  # fmt: skip
        with pytest.raises(EdgewmError, match=f"too little data: {what} are needed") as fault:
            train.material(small(), spot(replace(SPOTS, moments=there)), tmp_path, quiet, print)
        assert fault.value.fix == f"record more, or ask for fewer: {option}"
    with pytest.raises(EdgewmError, match="5 recorded contexts, 16 are needed"):
        teacher = spot(replace(SPOTS, moments={"contexts": 5}))
        gathered(teacher, Beginning(contexts=16), None, quiet)
    few = Source(contexts=lambda n, seed: contexts(min(n, 5), seed), rollouts=lambda *a: rollouts(5, *a[1:]))
    for ask, what in ((check_fit, "5 trajectories, 8"), (lambda t: budgets.regret(t, 0), "5 contexts, 48")):
        with pytest.raises(EdgewmError, match=f"{what} are needed") as fault:
            ask(spot(few))
        assert fault.value.fix == "record more"


def test_what_is_held_out_is_not_learned_from():
    """Of recorded data: pictures of one place are learned from, those of another held out."""

    def of_place(x: float) -> Source:
        pictures = [distill_world.picture(np.array([x + i, 0.0])) for i in range(PLANNER.horizon + 1)]

        def pairs(n, seed):
            return [({"pixels": pictures[0][None]}, {"pixels": pictures[-1][None]})] * n

        def still(n, steps, seed):
            return [(np.stack(pictures)[: steps + 1, None], np.tile(np.float32([1, 0]), (steps, 1)), None)] * n

        return Source(contexts=pairs, rollouts=still)

    teacher = spot(replace(of_place(-2.0), apart=of_place(0.0)))

    def at(z: np.ndarray) -> list[float]:
        return z[:, 0].round().tolist()

    assert at(bank(teacher, 2, 0)["latent"]) == [-2, -2] and at(held_out(teacher, 2, 0)["latent"]) == [0, 0]
    assert set(at(frames(teacher, 3, 0)["latents"])) == {-2, -1, 0}
    assert at(searches(teacher, 9, 0)["latent"]) == [0, *[-2] * 7, 0]
    nowhere = replace(teacher, source=replace(teacher.source, apart=Source(lambda n, seed: [], lambda *a: [])))
    for ask in (check_fit, lambda t: budgets.regret(t, 0)):
        with pytest.raises(EdgewmError, match="too little data: 0") as fault:
            ask(nowhere)
        assert fault.value.where == "what is held out for spot"


def test_room_is_asked_for_before_anything_is_written(tmp_path, monkeypatch):
    with pytest.raises(EdgewmError, match="take 5 MiB, 1 are allowed"):
        asked.check_room(5 * asked.MIB, 5 * asked.MIB, 1, tmp_path)
    free = type("Usage", (), {"free": 3 * asked.MIB})
    monkeypatch.setattr(asked.shutil, "disk_usage", lambda path: free)
    with pytest.raises(EdgewmError, match="take 5 MiB, 3 are free"):
        asked.check_room(6 * asked.MIB, asked.MIB, 100, tmp_path / "not" / "there")
    asked.check_room(6 * asked.MIB, 3 * asked.MIB, 100, tmp_path)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"precision": "fp16"}, "no student is trained for 'fp16'"),
        ({"precision": "fp8"}, "no student is trained for 'fp8'"),
        ({"terms": ["sharpness"]}, "no loss 'sharpness'"),
        ({"terms": []}, "no loss is given"),
        ({"training": {"learning_rate": -1.0}}, "learning_rate is -1"),
        ({"training": {"learning_rate": float("nan")}}, "learning_rate is nan"),
    ],
)
def test_options_that_make_no_run(options, what):
    with pytest.raises(EdgewmError, match=what):
        verb.distill("distill_world:make", target="orin", rate_hz=10.0, **options)


def test_episodes_want_a_simulator_before_anything_is_trained(monkeypatch):
    monkeypatch.setattr(verb, "learned_from", lambda *a: SPOTS)
    with pytest.raises(EdgewmError, match="the model brings no simulator"):
        verb.distill("distill_world:make", target="orin", rate_hz=10.0, episodes=3)


def test_losses_that_nothing_can_be_learned_from_are_refused(tmp_path, cache, monkeypatch):
    teacher, shape = lewm_teacher(depth=1)
    made = train.material(small(shape=shape), teacher, tmp_path / "lewm", quiet, print)
    with pytest.raises(EdgewmError, match="has its teacher's encoder learns nothing from that alone"):
        train.begun(small(shape=shape, weights=losses.weighing(["encode"])), teacher, made)

    def some(n, steps, seed):
        for pixels, actions, state in rollouts(n, steps, seed):
            yield pixels, actions, None if seed % 2 else state

    monkeypatch.setattr("edgewm.distill.material.SHARD_FRAMES", TRAINING["frames"] // 3)
    asked, partly = small(steps=12), spot(Source(contexts=contexts, rollouts=some))
    train.train(asked, partly, tmp_path / "some", cache=tmp_path / "cache")
    with pytest.raises(EdgewmError, match="nothing says what a picture shows"):
        train.train(replace(asked, weights=losses.weighing(["probe"])), partly, tmp_path, cache=tmp_path / "cache")


def test_answers_of_other_weights_are_not_taken(tmp_path):
    train.material(small(), spot(), tmp_path, quiet, print)
    module = make()
    module.turn.mul_(3)
    other = teacher_of("spot", own.from_module(module, "spot"), PLANNER, SPOTS)
    with pytest.raises(EdgewmError, match="another teacher's targets"):
        train.material(small(), other, tmp_path, quiet, print)


def test_processes_take_as_much_of_a_step_each(tmp_path, cache):
    for count in (3, 9):
        with pytest.raises(EdgewmError, match=f"{count} processes cannot share a step evenly") as fault:
            train.train(small(), spot(), tmp_path, cache=cache, share=Processes(0, count))
        assert fault.value.fix == "start 1, 2 of them"
    assert not list(tmp_path.iterdir())


def test_build_takes_the_student_it_is_given_and_distils_only_for_a_rate(monkeypatch, capsys):
    asked = {"rate_hz": 20.0, "precision": "auto", "dry_run": False, "out": "out"}
    asked |= dict.fromkeys(("target", "mode", "threads", "place", "seed"))
    assert student_for("reference", "folder", {"samples": 3}, asked, None, print) == (
        "folder", {"samples": 3}, "auto", None,
    )  # fmt: skip
    with pytest.raises(EdgewmError, match="no rate to distil for"):
        student_for("reference", "auto", {}, {**asked, "rate_hz": None}, None, print)
    with pytest.raises(EdgewmError, match="there is no student yet"):
        student_for("reference", "auto", {}, {**asked, "dry_run": True}, None, print)
    small = {"samples": 16, "iterations": 1, "elites": 2}
    failed = {"passed": False, "gates": [{"name": "regret", "passed": False}, {"name": "elites", "passed": True}]}
    for student, verdict, expected in (
        (None, None, ("reference", small, "w8a8", None)), ("out-student", failed, ("out-student", {}, "w8a8", failed)),
    ):  # fmt: skip
        found = {"student": student, "chosen": {"precision": "w8a8", "planner": {**small, "proposal": False}}}
        found |= {"verdict": verdict}
        found |= {"asked": {"begins_at_proposal": False}}
        monkeypatch.setattr("edgewm.distill.distill", lambda *a, found=found, **options: found)
        assert student_for("reference", "auto", {}, asked, None, print) == expected
    built = {"target": "host", "mode": "any", "precision": "w8a8"}
    monkeypatch.setattr("edgewm.build.build", lambda *a, **options: built)
    for passed, status, said in ((True, 0, "passed"), (False, 1, "failed regret"), (None, 2, "evidence for regret")):
        gates = [{"name": "regret", "passed": passed}]
        found["verdict"] = {"passed": passed, "gates": gates}
        assert execute(["build", "reference", "--student", "auto", "--rate-hz", "20", "--json", "-"]) == status
        shown = capsys.readouterr()
        assert json.loads(shown.out)["student"]["verdict"]["gates"] == gates and said in shown.err


def test_smaller_planners_have_fewer_samples_first():
    found = [(p.samples, p.iterations, p.elites) for p in planners(replace(PLANNER, samples=64, elites=8))]
    assert found == [(64, 2, 8), (32, 2, 4), (16, 2, 2), (16, 1, 2)]
    once = replace(PLANNER, samples=64, elites=8, iterations=1)
    assert [p.samples for p in planners(once)] == [64, 32, 16]


@pytest.fixture(scope="module")
def orin():
    return board_of("orin", None, 1, None, "cpu")


def test_a_plan_is_priced_where_it_is_sooner(small_lewm):
    """One thread of a processor may be slower than a GPU, many are not, for a model this small."""
    places = {place: board_of("orin", None, 1, None, place) for place in ("auto", "cpu", "gpu")}
    found = {place: tick(None, PLANNER, "w8a8", small_lewm.model, board) for place, board in places.items()}
    assert found["auto"] == min(found["cpu"], found["gpu"], key=lambda c: c.tick_ms["point"])
    assert (found["cpu"].place, found["gpu"].place) == ("cpu", "gpu") and found["cpu"].tick_ms != found["gpu"].tick_ms
    assert candidate_of(json.loads(json.dumps(found["gpu"].as_json()))) == found["gpu"]
    with pytest.raises(EdgewmError, match="host has no GPU that kernels can be compiled for"):
        board_of("host", None, 1, None, "gpu")
    with pytest.raises(EdgewmError, match="clocks in 120W are not known"):
        board_of("thor", "120W", 1, None, "gpu")


@pytest.fixture(scope="module")
def small_lewm() -> Teacher:
    return lewm_teacher(depth=1)[0]


@pytest.mark.parametrize("bf16", [0.8, 1.1])
@pytest.mark.parametrize("family", ["lewm", "own"])
def test_the_first_that_holds_the_rate_is_found_without_pricing_all(orin, monkeypatch, family, bf16):
    """Against walking through all in order of preference; the model itself may be as slow as it likes."""
    model = lewm_teacher(depth=3)[0].model if family == "lewm" else own.from_module(make(), "spot")
    mine, forms = of_teacher(model), {"fp32": 1.0, "bf16": bf16, "w8a8": 0.4}
    students = choice.students_of(model)
    pairs = [(s, form) for s in (None, *students) for form in forms]
    asked = []

    def ms(shape: Shape | None, form: str) -> float:
        size = 700.0 if family == "own" and shape is None else (shape or mine).step_weights
        return (size * (1 + (shape or mine).window) / (shape or mine).jump + 1e3) * forms[form]

    def priced(shape, planner, form, *rest):
        asked.append((shape, form))
        return Candidate(shape, form, planner, {"high": ms(shape, form)}, "nothing")

    monkeypatch.setattr(choice, "tick", priced)
    for rate_hz in sorted(1e3 / ms(*pair) for pair in pairs):
        if not any(ms(*pair) * rate_hz <= 1e3 for pair in pairs[-3:]):
            continue
        asked.clear()
        found = considered(model, orin, rate_hz, "auto", [[PLANNER]])
        best = chosen(found, rate_hz, orin)
        assert (best.shape, best.precision) == next(pair for pair in pairs if ms(*pair) * rate_hz <= 1e3)
        places = [pairs.index((c.shape, c.precision)) for c in found]
        assert places == sorted(places) and len(asked) == len(set(asked)) <= 8 + len(pairs) // 3
        assert {c.precision for c in considered(model, orin, rate_hz, "w8a8", [[PLANNER]])} == {"w8a8"}
    assert [candidate_of(json.loads(json.dumps(c.as_json()))) for c in found] == found


def test_a_model_of_another_family_may_be_faster_than_any_student(orin, monkeypatch):
    def priced(shape, planner, form, *rest):
        return Candidate(shape, form, planner, {"high": 5.0 if shape else {"fp32": 3.0}.get(form, 1.0)}, "nothing")

    monkeypatch.setattr(choice, "tick", priced)
    model = own.from_module(make(), "spot")
    best = chosen(considered(model, orin, 500.0, "auto", [[PLANNER]]), 500.0, orin)
    assert (best.shape, best.precision) == (None, "bf16")


def test_size_comes_before_samples_where_fewer_plan_as_well(orin, monkeypatch):
    model, half = lewm_teacher(depth=3)[0].model, replace(PLANNER, samples=PLANNER.samples // 2)
    own = of_teacher(model)

    def priced(shape, planner, form, *rest):
        return Candidate(shape, form, planner, {"high": (shape or own).step_weights * planner.samples / 1e3}, "nothing")

    monkeypatch.setattr(choice, "tick", priced)
    all_of_it = own.step_weights * PLANNER.samples / 1e3
    for share, expected in ((1.0, (None, PLANNER)), (0.5, (None, half))):
        budgets = [[PLANNER, half]]
        best = chosen(
            considered(model, orin, 1e3 / (share * all_of_it), "fp32", budgets), 1e3 / (share * all_of_it), orin
        )
        assert (best.shape, best.planner) == expected
    alone = considered(model, orin, 2e3 / all_of_it, "fp32", [[PLANNER], [half]])
    assert chosen(alone, 2e3 / all_of_it, orin).shape.step_weights < own.step_weights  # its planner is worth more


def test_fewer_samples_lose_more():
    loses = partial(budgets.regret(spot(), 0), spot().side)
    assert loses(PLANNER) == 0 < loses(replace(PLANNER, samples=2, elites=2, iterations=1))


def test_a_planner_that_gains_nothing_has_no_smaller_one():
    teacher = spot()
    blind = replace(teacher, side=replace(teacher.side, score=lambda z, goal, candidates: np.ones(len(candidates))))
    with pytest.raises(EdgewmError, match="planning gains nothing"):
        budgets.regret(blind, 0)


def test_costs_that_differ_by_rounding_alone_leave_latents_as_they_are():
    rng = np.random.default_rng(0)
    goal, futures = rng.standard_normal((4, 24), np.float32), rng.standard_normal((4, 3, 5, 2, 24), np.float32)
    costs = np.square(futures[:, :, :, -1] - goal[:, None, None]).mean(-1) * np.float32(1 + 2e-7)
    assert space_of(futures.reshape(-1, 24), 24, goal, futures, costs).scale == 1.0
    assert space_of(futures.reshape(-1, 24), 24, goal, futures, 2 * costs).scale != 1.0


def test_a_rate_that_none_can_meet_names_the_bound_and_the_best_rate(orin, small_lewm):
    found = considered(small_lewm.model, orin, 1e6, "w8a8", ([p] for p in planners(small_lewm.model.planner)))
    with pytest.raises(EdgewmError, match=r"no student plans .* bound by \w+") as fault:
        chosen(found, 1e6, orin)
    fastest = min(c.tick_ms["high"] for c in found)
    assert f"ask for at most {1e3 / fastest:.3g} Hz" in fault.value.fix
    offered = jumping(shapes(of_teacher(small_lewm.model)), PLANNER.horizon)
    smallest = min(offered, key=lambda s: (s.step_weights, -s.jump))
    assert {c.shape for c in found} == {smallest} and len({c.planner for c in found}) > 1
    ends = choice.fastest(small_lewm.model, orin, "w8a8", list(planners(small_lewm.model.planner))[-1])
    assert [c.shape for c in ends] == [smallest, None] and ends[0].tick_ms["high"] == fastest


def test_no_student_is_trained_where_the_model_itself_holds_the_rate(tmp_path, monkeypatch):
    monkeypatch.setattr(choice, "shapes", lambda teacher: [])
    found = verb.distill("distill_world:make", target="orin", rate_hz=20.0, precision="fp32", out=tmp_path / "none")
    assert found["student"] is None and found["chosen"]["shape"] is None and not (tmp_path / "none").exists()
    shown = io.StringIO()
    Console(file=shown, width=200).print(distill_table(found))
    assert "no student is needed: edgewm build distill_world:make --target jetson_agx_orin_64gb" in shown.getvalue()


def test_the_whole_verb_from_recorded_episodes(tmp_path, monkeypatch):
    data = tmp_path / "episodes"
    data.mkdir()
    for i, (pixels, action, state) in enumerate(rollouts(48, 8, 0)):
        np.savez(data / f"{i:02d}.npz", pixels=pixels, action=action, state=state)
    monkeypatch.setattr(distill_world, "contexts", None)
    monkeypatch.setattr(distill_world, "rollouts", None)
    monkeypatch.setattr(choice, "shapes", lambda teacher: [replace(teacher, depth=1)])
    monkeypatch.setattr(choice, "jumping", lambda found, horizon: [replace(s, jump=horizon) for s in found])
    monkeypatch.setattr(choice, "numbers_of", lambda model: 2)  # its bundle tells actions in few numbers
    slow = tick(None, PLANNER, "fp32", load("distill_world:make"), board_of("orin", None, None, None))
    real = choice.tick
    monkeypatch.setattr(
        choice, "tick",
        lambda shape, *a: real(shape, *a) if shape else replace(slow, tick_ms=dict.fromkeys(slow.tick_ms, 1e3)),
    )  # fmt: skip
    asked = {
        "target": "orin", "rate_hz": 20.0, "precision": "fp32", "out": tmp_path / "student", "judged": 10,
        "training": TRAINING, "data": data,
    }  # fmt: skip
    monkeypatch.setattr(verb, "TRAINED", ("fp32", "w8a8"))
    dry = verb.distill("distill_world:make", dry_run=True, **asked)
    assert dry["student"] is None and not (tmp_path / "student").exists() and dry["chosen"] in dry["considered"]
    found = verb.distill("distill_world:make", progress=quiet, **asked)
    kept = json.loads((tmp_path / "student" / verb.CONFIG).read_text())
    assert kept["asked"]["data"] == identity(data) and found["verdict"]["plan"]["contexts"] == 48 // ONE_IN
    assert json.loads((tmp_path / "student" / "bundle" / "verdict.json").read_text())["held_out"] is True
    stale = tmp_path / "begun" / verb.CONFIG
    stale.parent.mkdir()
    stale.write_text(json.dumps({**kept, "asked": {**kept["asked"], "seed": 7}}))  # of a run that never kept a state
    monkeypatch.setattr(verb, "train", lambda *a, **options: {})
    monkeypatch.setattr(verb, "build", lambda *a, **options: pytest.fail(stale.read_text()))
    with pytest.raises(pytest.fail.Exception, match=r'"seed": 0,'):
        verb.distill("distill_world:make", **{**asked, "out": stale.parent})
    assert kept["chosen"] == dry["chosen"] and kept["settings"]["steps"] == 24
    assert of_teacher(load(str(tmp_path / "student"))).jump == PLANNER.horizon
    assert json.loads((tmp_path / "student" / "config.json").read_text())["model"]["predictor"]["condition_dim"] == 2
    page = json.loads((tmp_path / "student" / "pareto.json").read_text())
    (told,) = (r for r in page["rows"] if r["state"] == "chosen")
    (variant,) = (r for r in page["rows"] if r["state"] == "variant")
    assert variant["name"] == told["name"].replace("fp32", "w8a8") and variant["tick_ms"] > 0
    assert page["rows"][0]["state"] == "teacher" and told["regret"] is not None and "fp32" in told["name"]
    with pytest.raises(EdgewmError, match="already holds a run"):
        verb.distill("distill_world:make", **asked)
    with pytest.raises(EdgewmError, match=r"the run to go on had rate_hz 20.0, this has 25.0"):
        verb.distill("distill_world:make", resume=True, **{**asked, "rate_hz": 25.0})
    (data / "00.npz").unlink()
    with pytest.raises(EdgewmError, match="the run to go on had data"):
        verb.distill("distill_world:make", resume=True, **asked)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(EdgewmError, match=r"holds other files: thesis\.txt"):
        verb.distill("distill_world:make", **{**asked, "out": tmp_path / "other"})


# ------------------------------------------------------------------------------------------------- the judge's view


def test_a_student_of_fewer_latents_is_judged_in_the_full_models_space():
    full = spot().side
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(2, 2)))[0]
    flat = np.linalg.svd(Spot().turn.numpy(), full_matrices=False)[2].T  # (4, 2): where its latents lie
    turn = flat @ axes

    narrow = replace(
        full, encode=lambda o: 0.5 * full.encode(o) @ turn,
        predict=lambda z, a: 0.5 * full.predict((2 * z @ turn.T).astype(np.float32), a) @ turn,
        score=lambda z, goal, c: 0.5 * full.score(
            (2 * z @ turn.T).astype(np.float32), (2 * goal @ turn.T).astype(np.float32), c
        ),
    )  # fmt: skip
    pictures = [o for o, _ in contexts(40, 0)]
    lifted = in_space_of(full, narrow, iter(pictures))
    assert in_space_of(full, full, iter(pictures)) is full
    z = full.encode(pictures[0])
    actions = np.random.default_rng(1).uniform(-1, 1, (6, 1, 2))
    assert np.allclose(lifted.encode(pictures[0]), z, atol=1e-3)
    given = np.repeat(z[None, None], 6, 0)
    assert np.allclose(lifted.predict(given, actions), full.predict(given, actions), atol=1e-3)

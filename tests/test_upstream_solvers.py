"""Every kind of planner against stable-worldmodel's own solver: its elites, its means, its plan, on the noise it drew.

The solvers' answers are recorded in float64 (tests/golden/record_upstream.py). Compared are the plan in real arithmetic
(to the last bits), in canonical float32, and the compiled plan (the canonical one, bit for bit).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import fixtures_models as fixtures
import numpy as np
import pytest
import torch
from fixtures_models import exact_constants  # noqa: F401
from planning import is_kept, iterations_of, mppi_tolerances, plan_rounding
from safetensors import safe_open
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors

from edgewm import expr as e
from edgewm.binding import Runtime
from edgewm.bundle import compile_bundle, pack
from edgewm.capture import capture
from edgewm.constants import Store
from edgewm.emit import schedule_program
from edgewm.interp import run
from edgewm.judge import sides
from edgewm.models import Model, capture_score, example, stable_worldmodel, synthetic
from edgewm.models.checkpoint import fill
from edgewm.passes import EXACT, LOWERING
from edgewm.passes import run as run_passes
from edgewm.planner import icem, plan_graph, plan_weights
from edgewm.program import Graph, Planner, Program
from edgewm.target import resolve

GOLDEN = Path(__file__).parent / "golden"
SOLVERS = GOLDEN / "solvers_upstream.safetensors"
with safe_open(SOLVERS, "np") as file:
    META = {key: json.loads(value) for key, value in file.metadata().items()}
CASES = META["cases"]
COMPILED = ("cem_warm_3_frames", "icem_best_3_frames", "mppi")
UNIT = fixtures.UNIT_ROUNDOFF


def planner_of(case: dict) -> Planner:
    settings = {key: value for key, value in case.items() if key != "warm"}
    return Planner(action_block=META["block"], commit_steps=META["block"], **settings)


@functools.cache
def model() -> Model:
    """The recorded weights, in float64, so that what torch folds of them is exact."""
    module, image_px, action_dim = stable_worldmodel.build(synthetic.config(**META["sizes"]), "golden")
    held = load_tensors(GOLDEN / "lewm_upstream.safetensors")
    fill(module, stable_worldmodel.rename({k: v for k, v in held.items() if not k.startswith("upstream/")}), "golden")
    return stable_worldmodel.lewm(module.double(), image_px, action_dim, planner_of(CASES["cem"]))


@functools.cache
def encoder() -> tuple[Graph, Store]:
    store: Store = {}
    (port,) = model().ports_of("observation")
    return capture(model().torch, [example(port)], [port.name], ["z"], call=model().encode, weights=store)


@functools.cache
def program_of(name: str) -> Program:
    """The case's plan on injected noise, float64 weights; captured with exact constants."""
    planner, (encode, store) = planner_of(CASES[name]), encoder()
    weights = dict(store)
    score = capture_score(model(), planner, weights, torch.float64)
    weights |= plan_weights(planner)
    if icem.COLOUR in weights:
        weights[icem.COLOUR] = icem.noise_colour(planner)
    entries = {"encode": encode, "score": score, "plan": plan_graph(encode, score, planner, injected_noise=True)}
    return Program(entries, weights, planner=planner)


def in_float32(program: Program) -> Program:
    """As a bundle holds it."""
    return program.with_(weights={k: v.astype(np.float32) for k, v in program.weights.items()})


@functools.cache
def recorded(name: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(name + "/"): v for k, v in load_file(SOLVERS).items() if k.startswith(name + "/")}


def inputs_of(program: Program, name: str) -> dict[str, np.ndarray]:
    """The recorded context as a plan finds it: the newest frame, latents of those before it, actions between."""
    given, older = recorded(name), program.planner.history - 1
    encode = program.entries["encode"]

    def latent(frame: np.ndarray) -> np.ndarray:
        return run(encode, {"pixels": frame[None]}, program.weights, real=True)["z"]

    found = {k: given[k] for k in ("noise", "warm_mean", "goal")} | {"pixels": given["pixels"][-1:]}
    if older:
        found |= {
            "history_z": np.concatenate([latent(f) for f in given["pixels"][:-1]]), "frames_seen": np.uint32([older]),
            "history_actions": given["past_actions"],
        }  # fmt: skip
    return found


def cost_of(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """The costs of candidates from the recorded context, by torch in float64."""
    given, older = recorded(name), planner_of(CASES[name]).history - 1
    side = sides.upstream(model(), planner_of(CASES[name]), "float64")
    frames = np.stack([side.encode({"pixels": frame}) for frame in given["pixels"]])
    goal = side.encode({"pixels": given["goal"]})

    def cost(candidates: np.ndarray) -> np.ndarray:
        past = np.broadcast_to(given["past_actions"], (len(candidates), older, candidates.shape[-1]))
        return side.score(frames, goal, np.concatenate([past, candidates], 1))

    return cost


def cost_rounding(program: Program, dtype: type) -> float:
    encode, score = (fixtures.rounding(program.entries[name], dtype) for name in ("encode", "score"))
    return 2 * encode + score


@functools.cache
def tolerances(name: str, dtype: type) -> list[float]:
    """Of the mean after each iteration, absolute."""
    given, program = recorded(name), program_of(name)
    planner = program.planner
    if planner.kind == "mppi":
        rounding = cost_rounding(program, dtype)
        return mppi_tolerances(cost_of(name), planner, given["noise"], given["warm_mean"], rounding, UNIT[dtype])
    whole = plan_rounding(planner, UNIT[dtype], np.abs(given["noise"]).max()) * np.abs(given["candidates"]).max()
    return [whole] * planner.iterations


def followed(program: Program, name: str, dtype: type) -> None:
    """Iteration by iteration, and the plan."""
    given, planner, real = recorded(name), program.planner, dtype is np.float64
    inputs = inputs_of(program, name)
    allowed = tolerances(name, dtype)
    steps = iterations_of(program.entries["plan"], program.weights, inputs, real)
    of_cost = cost_rounding(program, dtype) * np.abs(given["cost"]).max()
    means = [*given["mean"][1:], given["actions"] if planner.return_mean else None]
    for i, (step, mean) in enumerate(zip(steps, means, strict=True)):
        assert step["elites"].tolist() == given["elites"][i].tolist(), i
        if mean is not None:
            assert np.abs(step["mean"] - mean).max() <= allowed[i], i
        std = given["std"][i + 1] if i + 1 < len(steps) else given["last_std"]
        assert np.abs(step["std"] - std).max() <= max(allowed), i
        elite_cost = given["cost"][i][given["elites"][i]].mean()
        assert abs(step["cost"][0] - elite_cost) <= 2 * of_cost + max(allowed) * slope(given)
        if "kept" in step:
            order = np.argsort(given["cost"][i], kind="stable")[: len(is_kept(planner))]
            best = given["candidates"][i][order]
            assert np.abs(step["kept"][list(is_kept(planner))] - best).max() <= allowed[i], i
            if i + 1 < len(steps):
                assert np.array_equal(given["candidates"][i + 1][list(is_kept(planner))], best)
    found = run(program.entries["plan"], inputs, program.weights, real)
    assert np.abs(found["actions"] - given["actions"]).max() <= allowed[-1]
    assert found["elites"].tolist() == given["elites"][-1].tolist()


def slope(given: dict[str, np.ndarray]) -> float:
    """The most that a cost changes for each unit that a candidate's numbers change, among the candidates seen."""
    candidates, cost = given["candidates"].reshape(-1, given["candidates"][0, 0].size), given["cost"].reshape(-1)
    apart = np.abs(candidates[:, None] - candidates[None]).max(-1)
    return float((np.abs(cost[:, None] - cost[None]) / np.where(apart > 0, apart, np.inf)).max())


@pytest.mark.usefixtures("exact_constants")
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", CASES)
def test_plans_as_upstreams_solver_does(name: str, dtype: type) -> None:
    program = program_of(name)
    followed(program if dtype is np.float64 else in_float32(program), name, dtype)


@pytest.mark.usefixtures("exact_constants")
@pytest.mark.parametrize("name", CASES)
def test_the_judges_own_search_is_upstreams(name: str) -> None:
    given, planner = recorded(name), planner_of(CASES[name])
    found = sides.search(cost_of(name), planner, given["noise"], given["warm_mean"])
    allowed = tolerances(name, np.float64)
    assert np.array_equal(found.elites, given["elites"])
    assert np.abs(found.candidates - given["candidates"]).max() <= max(allowed) * (1 + np.abs(given["noise"]).max())
    assert np.abs(found.mean - given["actions"]).max() <= allowed[-1]


@pytest.mark.usefixtures("exact_constants")
def test_compiled_plans_are_the_same_bits(tmp_path: Path) -> None:
    """From latents: the encoder's compiled bits are tested elsewhere."""
    seen = Graph({"z": e.input("latent", (1, model().latent_dim))})
    plain, asked = {}, {}
    for name in COMPILED:
        program = in_float32(program_of(name))
        plan = plan_graph(seen, program.entries["score"], program.planner, injected_noise=True)
        plain[name], given = program.with_(entries={"plan": plan}), inputs_of(program, name)
        frames = {"latent": given.pop("pixels"), "goal": given.pop("goal")}
        latents = {k: run(program.entries["encode"], {"pixels": v}, program.weights)["z"] for k, v in frames.items()}
        asked[name] = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in (given | latents).items()}
    entries, weights = {}, {}
    for name, program in plain.items():
        fused = run_passes(program, EXACT + LOWERING)
        entries[name], weights = fused.entries["plan"], {**fused.weights, **weights}
        assert all(np.array_equal(weights[key], array) for key, array in fused.weights.items())
    board, _ = resolve("host")
    whole = Program(entries, weights)
    sections, paths = compile_bundle(whole, schedule_program(whole, board.isa), {}, board, tmp_path)
    (tmp_path / "model.ewm").write_bytes(pack(sections, board, paths))
    wanted = {name: run(program.entries["plan"], asked[name], program.weights) for name, program in plain.items()}
    for threads in (1, 2):
        with Runtime(tmp_path, threads) as runtime:
            for name, answer in wanted.items():
                found = runtime.run_entry(name, **asked[name])
                assert all(found[k].tobytes() == np.ascontiguousarray(v).tobytes() for k, v in answer.items())
                assert np.array_equal(found["elites"], recorded(name)["elites"][-1])

"""The verbs one after another on the shipped model, as a user has them: build, validate, run, profile."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch_world")

from safetensors.numpy import save_file

from edgewm.act import run
from edgewm.build import build
from edgewm.judge.sources import source_of
from edgewm.manifest import read_manifest
from edgewm.models import load
from edgewm.profile import profile
from edgewm.reference import PATH
from edgewm.validate import read_verdict, validate

CONTEXTS, TICKS = 3, 40


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Torch's workers spin while they wait, on the cores that the runtime is about to use."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The reference model in int8 with a search small enough for a test."""
    out = tmp_path_factory.mktemp("end") / "out"
    return out, build("reference", precision="w8a8", planner={"samples": 32, "iterations": 2}, out=out)


def test_the_bundle_is_what_was_asked_for(built: tuple[Path, dict[str, Any]]) -> None:
    out, result = built
    manifest = read_manifest(out)
    assert result["sha256"] == manifest.sha256 and result["precision"] == manifest.precision == "w8a8"
    assert (manifest.planner.samples, manifest.planner.iterations) == (32, 2)


def finite(value: Any) -> bool:
    """Whether every number in nested lists and mappings is one; there may be none where there is no evidence."""
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def test_three_contexts_are_too_few_for_a_verdict_but_rank_alike(built: tuple[Path, dict[str, Any]]) -> None:
    out, _ = built
    found = validate(out, against="reference", suite=("plan",), contexts=CONTEXTS)
    assert found["passed"] is None and found["same_weights"] and finite(found)
    (spearman,) = (gate for gate in found["gates"] if gate["name"] == "spearman_min")
    assert spearman["value"] > 0.9
    assert read_verdict(out)["bundle_sha256"] == found["bundle_sha256"]


def test_a_checkpoint_elsewhere_is_judged_on_recorded_data_and_a_named_simulator(
    built: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out, result = built
    checkpoint = shutil.copytree(PATH, tmp_path / "mine")
    planner, own = result["planner"], source_of("reference", load("reference"))
    pairs = [(seen["pixels"], goal["pixels"]) for seen, goal in own.contexts(CONTEXTS, 0)]
    periods = 2 * planner["horizon"] * planner["action_block"]
    rolled = [(frames, actions) for frames, actions, _ in own.rollouts(CONTEXTS, periods, 0)]
    arrays = dict(zip(("pixels", "goal"), map(np.stack, zip(*pairs, strict=True)), strict=True))
    arrays |= dict(zip(("rollout_pixels", "rollout_action"), map(np.stack, zip(*rolled, strict=True)), strict=True))
    save_file(arrays, tmp_path / "recorded.safetensors")
    found = validate(
        out, against=str(checkpoint), suite=("plan", "horizon", "closed-loop"), episodes=1, contexts=CONTEXTS,
        data=tmp_path / "recorded.safetensors", env="reference",
    )  # fmt: skip
    assert found["passed"] is None and found["same_weights"] and finite(found)
    assert found["data_sha256"] and not found["is_calibrated_on_data"]
    assert "futures" in json.loads((out / "report.json").read_text())
    assert found["horizon"]["trajectories"] == CONTEXTS and found["closed_loop"]["full"]["episodes"] == 1


def test_an_episode_is_played(built: tuple[Path, dict[str, Any]]) -> None:
    out, result = built
    found = run(out, env="reference", episodes=1)
    commit = result["planner"]["commit_steps"]
    assert found["plan_ms"]["plans"] == found["counts"]["published"] == -(-found["periods"]["max"] // commit)
    assert found["counts"]["fresh"] == found["periods"]["max"] and found["counts"]["refused_input"] == 0


def test_the_clock_measures_the_schedule_that_was_judged(built: tuple[Path, dict[str, Any]]) -> None:
    out, result = built
    found = profile(out, ticks=TICKS)
    commit = result["planner"]["commit_steps"]
    assert found["ticks"] == TICKS and 0 < found["plans"] <= -(-TICKS // commit)
    assert found["bundle_sha256"] == result["sha256"] and finite(found)
    assert found["plan_ms"]["max"] > 0 and found["states"]["refused_input"] == 0

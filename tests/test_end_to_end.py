"""The verbs one after another on the shipped model, as a user has them: build, validate, run, profile."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch_world")

from edgewm.act import run
from edgewm.build import build
from edgewm.manifest import read_manifest
from edgewm.profile import profile
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

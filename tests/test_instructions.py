"""A plan is the same work whatever it sees: instructions counted, not time."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edgewm.build import build
from edgewm.errors import EdgewmError
from edgewm.host import host

ROOT = Path(__file__).resolve().parent.parent
PLANS = 3


@pytest.fixture(scope="module")
def instructions() -> Iterator[ModuleType]:
    folder = str(ROOT / "benchmarks")
    sys.path.insert(0, folder)
    try:
        yield importlib.import_module("instructions")
    finally:
        sys.path.remove(folder)


@pytest.mark.needs("valgrind")
def test_a_plan_takes_the_same_instructions_for_every_observation(instructions: ModuleType, tmp_path: Path) -> None:
    isa = instructions.COUNTED.get(host().isa, host().isa)
    build("tiny:lewm", precision="w8a8", isa=isa, out=tmp_path / "out")
    seen = instructions.observations(tmp_path / "out", PLANS, seed=0)
    record = len(seen) // PLANS
    assert len({seen[i : i + record] for i in range(0, len(seen), record)}) == PLANS
    found = instructions.counts(tmp_path / "out", PLANS, tmp_path)
    assert found.shape == (PLANS,) and found.min() > 1e6
    assert instructions.spread(found)["apart"] <= instructions.APART


def test_counts_that_differ_are_seen(instructions: ModuleType) -> None:
    found = instructions.spread(np.array([1_000_000, 1_001_001, 1_000_000]))
    assert found["apart"] > instructions.APART and (found["least"], found["greatest"]) == (1_000_000, 1_001_001)
    assert instructions.spread(np.array([5, 5]))["apart"] == 0


def test_without_valgrind_the_error_says_how_to_get_it(
    instructions: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(instructions, "find_tool", lambda name: None)
    with pytest.raises(EdgewmError, match="valgrind is missing") as fault:
        instructions.counts(tmp_path, 1, tmp_path)
    assert "apt-get install valgrind" in fault.value.fix

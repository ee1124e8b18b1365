"""benchmarks/placement.py: every mixture, what hand-overs cost, and which modes there are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgewm.target import resolve

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import placement

MS = {"cpu": {"encode": 1.0, "score": 20.0, "refit": 2.0}, "gpu": {"encode": 4.0, "score": 10.0, "refit": 3.0}}


def test_a_mixture_is_the_sum_of_its_parts_and_of_hand_overs() -> None:
    found = placement.mixtures(MS, 5, {"cpu": 0.5, "gpu": 0.25})
    assert len(found) == 8 and found["cpu", "cpu", "cpu"] == 23.0 and found["gpu", "gpu", "gpu"] == 17.0
    assert found["cpu", "gpu", "gpu"] == 14.0 + 0.25  # once
    assert found["gpu", "gpu", "cpu"] == 16.0 + 5 * 0.5 + 4 * 0.25  # to the CPU each round, back before the next
    assert found["cpu", "gpu", "cpu"] == 13.0 + 0.25 + 5 * 0.5 + 4 * 0.25


def test_the_best_mixture_is_told_beside_the_better_device() -> None:
    row = placement.row_of(MS, 5, {"cpu": 0.5, "gpu": 0.25})
    assert row["one_device"] == "gpu" and row["one_device_ms"] == 17.0 and row["best_mixture"] == "cpu/gpu/cpu"
    assert row["saves_at_most"] == pytest.approx(1 - 13 / 17) and row["with_handovers"] == pytest.approx(1 - 14.25 / 17)
    alike = placement.row_of({"cpu": MS["gpu"], "gpu": MS["gpu"]}, 5, {"cpu": 1.0, "gpu": 1.0})
    assert alike["saves_at_most"] == alike["with_handovers"] == 0.0


def test_modes_whose_clocks_nobody_confirmed_have_no_row() -> None:
    for target in placement.TARGETS:
        board, _ = resolve(target)
        names = [mode.name for mode in placement.modes_of(board)]
        assert names and set(names) <= {mode.name for mode in board.mode if mode.gpu_mhz}
    assert [mode.name for mode in placement.modes_of(resolve("thor")[0])] == ["MAXN"]

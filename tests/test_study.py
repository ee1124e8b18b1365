"""Trials that several processes share: each done once, taken up again where a worker died, and the best trained on."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from distill_world import LATENT

from edgewm.cli import cli
from edgewm.distill import choice, study, trials, verb
from edgewm.distill.choice import Candidate
from edgewm.distill.shapes import Shape
from edgewm.errors import EdgewmError

pytest.importorskip("optuna", reason="optuna is missing; pip install 'edgewm[distill]'")

ASKED = {"rate_hz": 10.0, "planner": {"samples": 4}}
QUICK = {"beat_s": 0.05, "grace_s": 0.4}


def entries(n: int) -> list[dict]:
    return [{"name": f"number {i}"} for i in range(n)]


def child(work: Callable[[], None]) -> int:
    """The process id of a child that does so."""
    if found := os.fork():
        return found
    try:
        torch.set_num_threads(1)
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(3)


def ended_well(*children: int) -> bool:
    return [os.waitpid(pid, 0)[1] for pid in children] == [0] * len(children)


def test_two_processes_do_each_entry_once_and_both_take_part(tmp_path):
    journal, done = tmp_path / "shared" / "study.log", tmp_path / "done"

    def work() -> None:
        opened = study.open_study(journal, ASKED, lambda: entries(9), **QUICK)

        def judge(i: int) -> dict:
            time.sleep(0.05)
            with done.open("a") as out:
                out.write(f"{i} {os.getpid()}\n")
            return {"value": -abs(i - 4.0), "elites": i / 9}

        study.run(opened, judge)

    assert ended_well(child(work), child(work))
    lines = [line.split() for line in done.read_text().splitlines()]
    assert sorted(int(i) for i, _ in lines) == list(range(9)) and len({pid for _, pid in lines}) == 2
    opened = study.open_study(journal, ASKED, None)
    assert [f["value"] for f in study.figures_of(opened)] == [-abs(i - 4.0) for i in range(9)]
    study.run(opened, pytest.fail)  # nothing is left
    assert opened.entries == entries(9)


def test_what_a_killed_worker_left_is_taken_up_again(tmp_path):
    journal, begun = tmp_path / "study.log", tmp_path / "begun"
    opened = study.open_study(journal, ASKED, lambda: entries(2), **QUICK)

    def hang(i: int) -> dict:
        begun.write_text(str(i))
        time.sleep(60)
        raise AssertionError

    pid = child(lambda: study.run(study.open_study(journal, ASKED, None, **QUICK), hang))
    while not begun.exists():
        time.sleep(0.01)
    time.sleep(3 * QUICK["beat_s"])
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    taken = []
    study.run(opened, lambda i: taken.append(i) or {"value": float(i)})
    assert begun.read_text() == "0" and sorted(taken) == [0, 1]
    assert [f["value"] for f in study.figures_of(opened)] == [0.0, 1.0]


def test_a_slow_trial_that_beats_is_left_alone(tmp_path):
    opened = study.open_study(tmp_path / "study.log", ASKED, lambda: entries(1), **QUICK)
    other, told = study.open_study(tmp_path / "study.log", ASKED, None, **QUICK), []

    def slow(i: int) -> dict:
        until = time.monotonic() + 2 * QUICK["grace_s"]
        while time.monotonic() < until:
            study._bury(other)
            time.sleep(0.02)
        return {"value": 1.0}

    study.run(opened, slow, told.append)
    assert study.figures_of(other) == [{"value": 1.0}] and told == [1, 0]


def test_an_entry_that_kills_whoever_takes_it_is_given_up(tmp_path):
    opened = study.open_study(tmp_path / "study.log", ASKED, lambda: entries(2), **QUICK)

    def judge(i: int) -> dict:
        if i == 0:
            raise MemoryError
        return {"value": 1.0}

    for _ in range(study.ATTEMPTS):
        with pytest.raises(MemoryError):
            study.run(opened, judge)
    study.run(opened, judge)
    assert study.figures_of(opened) == [None, {"value": 1.0}]


def test_an_entry_that_two_queued_at_once_is_tried_once(tmp_path):
    opened = study.open_study(tmp_path / "study.log", ASKED, lambda: entries(2), **QUICK)
    study._queue(opened.of, opened.entries, 0)
    taken = []
    study.run(opened, lambda i: taken.append(i) or {"value": 0.0})
    assert taken == [0, 1]


def test_studies_that_cannot_be_joined(tmp_path, monkeypatch):
    journal = tmp_path / "study.log"
    with pytest.raises(EdgewmError, match="there is no study to join"):
        study.open_study(journal, ASKED, None)
    study.open_study(journal, ASKED, lambda: entries(1))
    with pytest.raises(EdgewmError, match=r"was asked for rate_hz 10.0, this run for 20.0"):
        study.open_study(journal, {**ASKED, "rate_hz": 20.0}, None)
    damaged = tmp_path / "damaged.log"
    damaged.write_bytes(b"no journal\n" + journal.read_bytes())
    with pytest.raises(EdgewmError, match="the study is damaged"):
        study.open_study(damaged, ASKED, None)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(EdgewmError, match="optuna is missing") as fault:
        study.open_study(journal, ASKED, None)
    assert "edgewm[distill]" in fault.value.fix


# ------------------------------------------------------------------------------------------------------- students

SHAPES = [Shape(LATENT, depth, 1, 8, 16, 16, 1, 8, 1, 1, 2.0, 16, 4) for depth in (2, 1)]
TRAINING = {
    "steps": 9, "round_steps": 9, "frames": 24, "contexts": 4, "held_out": 3, "step_contexts": 2, "step_frames": 4,
    "round_contexts": 2, "round_frames": 4,
}  # fmt: skip


@pytest.fixture
def asked(monkeypatch) -> dict:
    """Of a verb for which both shapes hold the rate, neither smaller in everything, and the model itself does not."""
    monkeypatch.setattr(choice, "shapes", lambda teacher: [SHAPES[0], replace(SHAPES[1], mlp_dim=20)])

    def tick(shape, planner, form, *rest):
        return Candidate(shape, form, planner, dict.fromkeys(("point", "high"), 1.0 if shape else 99.0), "nothing")

    monkeypatch.setattr(choice, "tick", tick)
    monkeypatch.setattr(verb, "tick", tick)
    training = {**TRAINING, "steps": 4000}  # in full
    return {"rate_hz": 20.0, "target": "orin", "precision": "fp32", "training": training, "planner": {"samples": 24}}


def test_two_processes_try_what_one_would_find_and_the_best_is_trained_in_full(tmp_path, asked, monkeypatch):
    torch.set_num_threads(1)
    dry = verb.distill("distill_world:make", trials=2, trial_steps=4, dry_run=True, out=tmp_path / "one", **asked)
    assert len(dry["considered"]) == 2 and not (tmp_path / "one").exists()
    trained = []
    monkeypatch.setattr(verb, "train", lambda settings, *a, **options: trained.append((settings, options["cache"])))
    monkeypatch.setattr(verb, "build", lambda *a, **options: None)
    verdict = {"passed": None, "plan": {"elite_overlap": 0.5}, "closed_loop": None, "gates": []}
    monkeypatch.setattr(verb, "validate", lambda *a, **options: verdict)
    found = verb.distill("distill_world:make", trials=2, trial_steps=4, out=tmp_path / "one", **asked)
    ranks = [row["figures"]["value"] for row in found["trials"]]
    best = found["considered"][ranks.index(max(ranks))]
    assert found["chosen"] == best and trained[0][0].steps == 4000 and trained[0][1].is_dir()
    assert trained[0][0].shape == Shape(**best["shape"])
    states = {r["state"] for r in json.loads((tmp_path / "one" / "pareto.json").read_text())["rows"]}
    assert states == {"teacher", "tried", "chosen"}

    def join(out: str) -> None:
        time.sleep(0.0 if out == "two" else 0.2)
        monkeypatch.setattr(study.Study, "beat_s", 0.1)
        how = {"trials": 2} if out == "two" else {"join": True, "study": tmp_path / "two" / trials.JOURNAL}
        while out != "two" and not (tmp_path / "two" / trials.JOURNAL).is_file():
            time.sleep(0.05)
        told = verb.distill("distill_world:make", trial_steps=4, out=tmp_path / out, **how, **asked)
        assert told["chosen"] == best and told["trials"] == found["trials"]
        assert (told["student"] is None) == (out != "two")

    assert ended_well(child(lambda: join("two")), child(lambda: join("three")))


def test_options_of_trials_want_trials(tmp_path):
    asked = ["distill", "reference", "--rate-hz", "20", "--study", str(tmp_path / "s"), "-o", str(tmp_path / "o")]
    with pytest.raises(EdgewmError, match="--study is for trials"):
        CliRunner().invoke(cli, asked, catch_exceptions=False)

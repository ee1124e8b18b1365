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

import distill_world
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from distill_world import LATENT, PLANNER, Spot
from test_distill import SPOTS

from edgewm.cli import cli
from edgewm.distill import choice, losses, study, targets, trials, verb
from edgewm.distill.choice import Candidate
from edgewm.distill.material import Settings
from edgewm.distill.shapes import Shape
from edgewm.distill.teacher import teacher_of
from edgewm.errors import EdgewmError
from edgewm.models import own

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


def test_an_entry_without_a_value_is_done(tmp_path):
    opened, tried = study.open_study(tmp_path / "study.log", ASKED, lambda: entries(2), **QUICK), []
    study.run(opened, lambda i: tried.append(i) or ({"value": 1.0} if i else {"fault": "loss is nan"}))
    assert tried == [0, 1] and study.figures_of(opened) == [{"fault": "loss is nan"}, {"value": 1.0}]
    study.run(opened, pytest.fail)
    kept = [{"candidate": name, "name": name} for name in "ab"]
    assert trials.best_of(replace(opened, entries=kept))[0] == "b"
    alone = study.open_study(tmp_path / "alone.log", ASKED, lambda: entries(1), **QUICK)
    study.run(alone, lambda i: {"fault": "loss is nan"})
    with pytest.raises(EdgewmError, match="every trial of the study was given up"):
        trials.best_of(alone)


def full_disk(i: int) -> dict:
    try:
        raise OSError(28, "No space left on device")
    except OSError as fault:
        raise EdgewmError("writing failed", "out", "free some space") from fault


def interrupted(i: int) -> dict:
    raise KeyboardInterrupt


@pytest.mark.parametrize("stopped", [full_disk, interrupted])
def test_whoever_stops_a_worker_says_nothing_of_its_entry(tmp_path, stopped):
    opened = study.open_study(tmp_path / "study.log", ASKED, lambda: entries(1), **QUICK)
    for _ in range(study.ATTEMPTS + 1):
        with pytest.raises((EdgewmError, KeyboardInterrupt)):
            study.run(opened, stopped)
    study.run(opened, lambda i: {"value": 1.0})
    assert study.figures_of(opened) == [{"value": 1.0}]


def test_workers_that_died_further_on_are_not_counted_together(tmp_path):
    opened, stands = study.open_study(tmp_path / "study.log", ASKED, lambda: entries(1), **QUICK), iter("aabbcd")

    def dies(i: int) -> dict:
        raise MemoryError

    for _ in range(5):
        with pytest.raises(MemoryError):
            study.run(opened, dies, stands=lambda i: next(stands))
    study.run(opened, lambda i: {"value": 1.0}, stands=lambda i: next(stands))
    assert study.figures_of(opened) == [{"value": 1.0}]


def test_a_study_whose_beginner_died_is_begun(tmp_path, monkeypatch):
    optuna = pytest.importorskip("optuna")
    monkeypatch.setattr(study, "PATIENCE_S", 0.1)
    empty, mute = tmp_path / "empty.log", tmp_path / "mute.log"
    empty.touch()
    optuna.create_study(storage=study._storage(optuna, mute), study_name=study.NAME, direction="maximize")
    for journal in (empty, mute):
        assert not study.is_begun(journal)
        with pytest.raises(EdgewmError, match="there is no study to join"):
            study.open_study(journal, ASKED, None)
        opened, tried = study.open_study(journal, ASKED, lambda: entries(2), **QUICK), []
        study.run(opened, lambda i, tried=tried: tried.append(i) or {"value": 0.0})
        assert tried == [0, 1] and study.is_begun(journal)


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
    asked = {**dict.fromkeys((*trials.KEYS, *trials.CHOSEN_FOR)), "target": "orin"}
    trials.begin(tmp_path / "orin.log", asked, list, str)
    trials.begin(tmp_path / "orin.log", {**asked, "target": "host", "trials": 3}, None, str, join=True)
    with pytest.raises(EdgewmError, match=r"was asked for target 'orin', this run for 'host'"):
        trials.begin(tmp_path / "orin.log", {**asked, "target": "host"}, None, str)
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


def candidates() -> list[dict]:
    found = [Candidate(shape, "fp32", PLANNER, {"point": 1.0, "high": 1.0}, "x").as_json() for shape in SHAPES]
    return [{"name": f"number {i}", "candidate": c} for i, c in enumerate(found)]


def test_a_trial_whose_loss_is_no_number_is_left_out_aloud(tmp_path, monkeypatch):
    depths = []

    def diverges(own, *rest):
        depths.append(own.shape.depth)
        raise losses.Diverged("loss is nan at step 3", "out", "give a lower --learning-rate")

    monkeypatch.setattr(trials, "material", diverges)
    opened, told = study.open_study(tmp_path / "study.log", ASKED, candidates, **QUICK), []
    given = [opened, lambda planner: None, lambda c: Settings(c.shape, c.planner), None, tmp_path / "t", tmp_path / "c"]
    trials.work(*given, lambda *progress: None, told.append)
    assert told == [f"given up: number {i}: loss is nan at step 3" for i in range(2)]
    assert depths == [2, 1]


def test_held_out_searches_of_another_teacher_are_not_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "material", lambda *given: None)
    turned = distill_world.make()
    turned.turn.mul_(2)
    first, second = (teacher_of("spot", own.from_module(m, "spot"), PLANNER, SPOTS) for m in (Spot(), turned))
    made = []
    monkeypatch.setattr(trials, "held_out", lambda *given: made.append(1) or {"x": np.zeros(1)})
    monkeypatch.setattr(trials, "train", lambda *given, **options: pytest.fail("the searches were taken"))
    for teacher, ends in ((first, pytest.fail.Exception), (second, EdgewmError)):
        opened = study.open_study(tmp_path / f"{id(teacher)}.log", ASKED, candidates, **QUICK)
        given = [opened, lambda planner, t=teacher: t, lambda c: Settings(c.shape, c.planner), teacher]
        with pytest.raises(ends):
            trials.work(*given, tmp_path / "t", tmp_path / "c", lambda *progress: None, print)
    assert len(made) == 1


def test_the_bound_on_the_cache_holds_where_it_was_begun(tmp_path, asked):
    targets.open_folder(tmp_path / "cache", {"of": 1})
    asked["training"] |= {"frames": 100_000}
    with pytest.raises(EdgewmError, match=r"take \d+ MiB, 1 are allowed"):
        verb.distill("distill_world:make", out=tmp_path / "out", cache=tmp_path / "cache", cache_mib=1, **asked)


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
    assert states == {"teacher", "tried", "chosen", "variant"}

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

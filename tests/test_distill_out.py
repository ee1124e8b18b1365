"""Where a student goes: what is never overwritten, who may write there, and which paths are refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from test_proposal import seeded_for

from edgewm.distill import asked, proposal_only, states, trials, verb
from edgewm.errors import EdgewmError
from edgewm.models import folder_of, load

ASKED = {"target": "orin", "rate_hz": 20.0, "precision": "fp32", "planner": {"samples": 8}}


def folder(at: Path, *names: str) -> Path:
    at.mkdir(parents=True, exist_ok=True)
    for name in names:
        (at / name).write_text("{}")
    return at


def test_a_checkpoint_of_someone_else_stays(tmp_path):
    foreign = folder(tmp_path / "foreign", "config.json", "weights.safetensors", "robot.json")
    for resume in (False, True):
        with pytest.raises(EdgewmError, match=r"holds other files: config\.json, robot\.json, weights\.safetensors"):
            asked.check_out(foreign, resume, "distill_world:make")
        with pytest.raises(EdgewmError, match="the output is MODEL itself"):
            asked.check_out(tmp_path / "foreign" / ".." / "foreign", resume, str(foreign))


def test_a_result_without_states_is_not_begun_again_but_what_was_cut_off_before_is(tmp_path):
    finished = folder(tmp_path / "finished", asked.CONFIG, "config.json", "weights.pt", "proposal.safetensors")
    with pytest.raises(EdgewmError, match="already holds a run"):
        asked.check_out(finished, False, "distill_world:make")
    asked.check_out(finished, True, "distill_world:make")
    cut_off = folder(tmp_path / "cut", trials.JOURNAL, f"{trials.JOURNAL}.lock", ".lock")
    folder(cut_off / asked.RUN / "cache", "of.json")
    asked.check_out(cut_off, False, "distill_world:make")


def test_one_run_at_a_time_and_the_second_changes_nothing(tmp_path):
    with states.alone(tmp_path):
        (tmp_path / asked.CONFIG).write_text('{"asked": {"seed": 0}}')
        with pytest.raises(EdgewmError, match="another run is at work"):
            verb.distill("distill_world:make", out=tmp_path, seed=1, **ASKED)
        assert json.loads((tmp_path / asked.CONFIG).read_text()) == {"asked": {"seed": 0}}
    with states.alone(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "new").exists() and (tmp_path / asked.CONFIG).exists()


def test_the_weights_that_were_loaded_are_those_that_are_shipped(tmp_path):
    source = shutil.copytree(folder_of("reference"), tmp_path / "source")
    weights = load_file(source / "weights.safetensors")
    name = next(key for key, value in weights.items() if value.is_floating_point())
    save_file(weights | {name: weights[name] + 1}, source / "epoch_5.safetensors")
    model = load(str(source / "epoch_5.safetensors"))
    begun = replace(model, proposal=seeded_for(model))
    proposal_only.write_checkpoint(str(source / "epoch_5.safetensors"), begun, {"proposal": True}, tmp_path / "out")
    made = load(str(tmp_path / "out"))
    assert made.files["weights.safetensors"] == model.files["epoch_5.safetensors"]


@pytest.mark.parametrize(
    ("places", "what", "where"),
    [
        ({"cache": "file"}, "file is a file", "--cache"),
        ({"out": "file"}, "file is a file", "-o"),
        ({"out": "file/below"}, "file is a file", "-o"),
        ({"study": "folder", "trials": 2}, "folder is a directory", "--study"),
        ({"study": "file/s.log", "trials": 2}, "file is a file", "--study"),
    ],
)
def test_paths_that_cannot_be_written(tmp_path, places, what, where):
    folder(tmp_path / "folder")
    (tmp_path / "file").touch()
    given = {key: tmp_path / value if isinstance(value, str) else value for key, value in places.items()}
    with pytest.raises(EdgewmError, match=what) as fault:
        verb.distill("distill_world:make", **{"out": tmp_path / "out", **given}, **ASKED)
    assert fault.value.where == where
    if not given.keys() & {"study"}:
        with pytest.raises(EdgewmError, match=what):
            proposal_only.distill_proposal("reference", **{"out": tmp_path / "out", **given})

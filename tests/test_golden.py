"""Golden answers of a bundle for another machine: asked of this one's processor once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import programs
import pytest

from edgewm import expr as e
from edgewm import golden, interp
from edgewm.passes import EXACT, LOWERING, run
from edgewm.program import Graph


def same(found: golden.Answers, wanted: golden.Answers) -> bool:
    """Entries in their order, ports and bits."""
    told = [
        [(entry, *({port: (a.shape, a.dtype, a.tobytes()) for port, a in side.items()} for side in sides))
         for entry, *sides in answers]
        for answers in (found, wanted)
    ]  # fmt: skip
    return told[0] == told[1]


def test_answers_are_asked_once_for_the_same_file_and_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden, "cache_folder", lambda: tmp_path)
    graph = Graph({"y": e.tanh(e.matmul(e.input("x", (5, 3)), e.weight("w", (3, 2)))), "z": e.input("u", (), "u32")})
    program = run(run(programs.program_of({"encode": graph}), EXACT), LOWERING)
    asked, runtime = [], golden.Runtime
    monkeypatch.setattr(golden, "Runtime", lambda folder: asked.append(folder) or runtime(folder))
    first = golden.answers(program, 1)
    (_, inputs, outputs), (kept,) = first[0], (tmp_path / "answers").iterdir()
    assert programs.differing(outputs, interp.run(program.entries["encode"], dict(inputs), program.weights)) == []
    assert same(golden.answers(program, 1), first) and len(asked) == 1
    assert not same(golden.answers(program, 2), first) and len(asked) == 2
    for damaged in (b"", kept.read_bytes()[:-40]):
        kept.write_bytes(damaged)
        assert same(golden.answers(program, 1), first)
    assert len(asked) == 4
    changed = program.with_(weights={name: w + np.float32(1) for name, w in program.weights.items()})
    assert not same(golden.answers(changed, 1), first) and len(asked) == 5

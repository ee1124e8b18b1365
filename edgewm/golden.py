"""Golden answers: recorded inputs and what each entry answers in canonical arithmetic, replayed wherever a bundle runs.

By the arithmetic contract every target gives the same bits, so a bundle for this machine records them (the tests
compare that bundle with the oracle); a board that answers otherwise is broken, and `edgewm-tick --golden` says so.

A GPU's tensor cores alone have an order of their own, in products of bf16. An entry with such products is held to what
rounding explains (`rounding.py`) instead; one that also chooses, by topk, may choose otherwise, and is only looked at
for being finite. Section `tolerances` says which: for each record the greatest difference allowed, as a fraction of the
largest magnitude: 0 for the same bits, infinite where numbers are all that can be asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import format as ewm
from .binding import Runtime
from .bundle import compile_bundle, pack
from .emit import schedule_program
from .identity import code_identity, program_identity
from .ops import NUMPY
from .program import Graph, Program
from .rounding import nodes_of, tensor_rounding
from .target import Target, compile_flags, resolve
from .toolchain import cache_folder

ENTRIES = ("encode", "predict", "score", "plan")  # and every decoder


Answers = list[tuple[str, Mapping[str, np.ndarray], Mapping[str, np.ndarray]]]  # entry, its inputs, its outputs


def answers(program: Program, seed: int) -> Answers:
    """Of each entry worth replaying, by a bundle for this machine's processor; kept by the digest of all that they come
    from: the program, the seed, edgewm's own sources, and what they are compiled for."""
    here, _ = resolve("host")
    made_from = (program_identity(program), code_identity(), here.isa, *compile_flags(here), str(seed))
    kept = cache_folder() / "answers" / f"{hashlib.sha256(chr(0).join(made_from).encode()).hexdigest()}.npz"
    found = _kept(kept)
    if found is None:
        with tempfile.TemporaryDirectory(prefix="edgewm-golden-") as scratch:
            folder = Path(scratch)
            made, own = compile_bundle(program, schedule_program(program, here.isa), {}, here, folder)
            (folder / "model.ewm").write_bytes(pack(made, here, own))
            found = asked(program, seed, folder)
        _keep(kept, found)
    return found


def asked(program: Program, seed: int, folder: Path) -> Answers:
    """The answers of the bundle in `folder`."""
    found = []
    with Runtime(folder) as runtime:
        for name in (n for n in program.entries if n in ENTRIES or n.startswith("decode_")):
            inputs = example_inputs(program, name, seed)
            found.append((name, inputs, runtime.run_entry(name, **inputs)))
    return found


def _kept(path: Path) -> Answers | None:
    """What was said of the same before; None where that is not known or damaged."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            found: dict[str, tuple[dict, dict]] = {}
            for key in arrays.files:
                entry, side, port = key.split("|")
                found.setdefault(entry, ({}, {}))[int(side)][port] = arrays[key]
    except (OSError, EOFError, ValueError, zipfile.BadZipFile):
        return None
    return [(entry, *sides) for entry, sides in found.items()]


def _keep(path: Path, found: Answers) -> None:
    """Written beside and renamed; a full or read-only cache costs time, not the build."""
    named = {f"{e}|{side}|{port}": a for e, *both in found for side, of in enumerate(both) for port, a in of.items()}
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as beside:
            np.savez(beside, **named)
        Path(beside.name).replace(path)


def record(
    program: Program, sections: Mapping[str, bytes], board: Target, seed: int, paths: Mapping[str, Any],
    answered: Answers | None = None,
) -> dict[str, bytes]:  # fmt: skip
    """Section `golden` for a file of these sections, a record an entry worth replaying; for a GPU `tolerances` too.
    `answered`: what `answers` said, where it was asked already."""
    here, _ = resolve("host")
    if answered is None and board.machine == here.machine and paths["place"] == "cpu":
        folder = Path(paths["folder"])
        (folder / "model.ewm").write_bytes(pack(sections, board, paths))
        answered = asked(program, seed, folder)
    elif answered is None:
        answered = answers(program, seed)
    golden = b"".join(ewm.golden_record(n, by_port(sections, n, i, o)) for n, i, o in answered)
    if paths["place"] == "cpu":
        return {"golden": golden}
    allowed = [allowed_difference(program.entries[name]) for name, _, _ in answered]
    return {"golden": golden, "tolerances": np.array(allowed, "<f4").tobytes()}


def allowed_difference(graph: Graph) -> float:
    """Between a GPU's answers and the recorded ones, as a fraction of the largest; see above."""
    rounding = tensor_rounding(graph)
    if rounding and any(node.op == "topk" for node in nodes_of(graph)):
        return float("inf")
    return rounding if rounding < 1 else float("inf")


def by_port(
    sections: Mapping[str, bytes], entry: str, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
) -> list[tuple[int, np.ndarray]]:
    """Arrays by port name as `format.golden_record` takes them: by port index, inputs before results."""
    entries = np.frombuffer(sections["entries"], ewm.ENTRY)
    ports = np.frombuffer(sections["ports"], ewm.PORT)
    indices = np.frombuffer(sections["entry_ports"], "<u4")
    (row,) = (e for e in entries if e["name"].decode() == entry)
    found = []
    for index in indices[row["first_port"] : row["first_port"] + row["ports"]]:
        port = ports[index]
        name = port["name"].decode()
        is_result = port["kind"] in (ewm.KINDS["result"], ewm.KINDS["action"])
        found.append((int(index), (outputs if is_result else inputs)[name]))
    return sorted(found, key=lambda f: ports[f[0]]["kind"] in (ewm.KINDS["result"], ewm.KINDS["action"]))


def example_inputs(program: Program, entry: str, seed: int) -> dict[str, np.ndarray]:
    """Drawn inputs of an entry, within their ports' ranges."""
    rng = np.random.default_rng([seed, len(entry)])
    ports = {port.name: port for port in program.ports}
    found = {}
    for name, leaf in program.entries[entry].inputs().items():
        low, high = (ports[name].low, ports[name].high) if name in ports else (None, None)
        found[name] = drawn_for(rng, leaf.shape, NUMPY[leaf.dtype], low, high)
    return found


def drawn_for(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: Any, low: float | None, high: float | None
) -> np.ndarray:
    """Pixels, whole numbers or numbers of unit variance, within bounds where there are any."""
    kind = np.dtype(dtype)
    if kind == np.uint8:
        drawn = rng.integers(0, 256, shape, np.uint8)
    elif kind.kind in "iu":
        drawn = rng.integers(0, 1000, shape).astype(kind)
    else:
        drawn = rng.standard_normal(shape).astype(np.float32)
    return drawn if (low, high) == (None, None) else np.clip(drawn, low, high).astype(drawn.dtype)

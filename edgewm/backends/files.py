"""What a backend's bundle holds: the program as ONNX files, their weights in one file, golden answers, a manifest.

    encode.onnx          what a plan does once: observation, goal, warm start -> `begin_<name>` of what a round reads
    iterate.onnx         one round: noise, mean, std and what encode gave -> `next_mean`, `next_std`, ..., `costs`
    entry-<name>.onnx    the entries that tools ask: encode, predict, score, decoders
    weights.bin          all their larger arrays, each once
    golden.npz           recorded inputs and answers, with tolerances (golden.py)
    manifest.json        what the bundle is, each graph's ports, the SHA-256 of each file beside it
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EdgewmError
from ..iteration import split
from ..manifest import Manifest
from ..onnx_graph import export
from ..program import Graph, Program
from . import golden
from .host import BEGIN, ENCODE, ENTRY, GIVEN, ITERATE, PLAN, Call

WEIGHTS, GOLDEN = "weights.bin", "golden.npz"
IN_FILE_BYTES = 1024  # of an array that stays in the ONNX file itself
ALIGNMENT = 64


def graphs_of(program: Program) -> dict[str, Graph]:
    """The graphs of a bundle by name. EdgewmError for a plan that carries more than its warm start to the next one."""
    planner = program.planner
    if planner.proposal:
        where = "--proposal of the model's planner"
        raise EdgewmError("a backend begins a search at zero", where, "build with --no-proposal, or --backend native")
    for name, is_so in (("--history", planner.history > 1), ("--roll-committed", planner.roll_committed)):
        if is_so:
            raise EdgewmError(
                "a backend plans from the newest frame alone", f"{name} of the model's planner",
                f"build with {'--history 1' if name == '--history' else '--no-roll-committed'}, or --backend native",
            )  # fmt: skip
    prepare, iterate = split(program.entries[GIVEN])
    found = {ENCODE: Graph({f"{BEGIN}{name}": node for name, node in prepare.outputs.items()}), ITERATE: iterate}
    return found | {f"{ENTRY}{name}": g for name, g in program.entries.items() if name not in (PLAN, GIVEN)}


def written(graphs: Mapping[str, Graph], weights: Mapping[str, np.ndarray], opset: int) -> dict[str, bytes]:
    """The ONNX files and `weights.bin`, by file name. EdgewmError, naming the node, for what ONNX cannot express."""
    found: dict[str, bytes] = {}
    places: dict[bytes, int] = {}
    blob = bytearray()
    for name, graph in graphs.items():
        try:
            model = export(graph, weights, opset)
        except EdgewmError as fault:
            raise EdgewmError(fault.what, f"{name}.onnx: {fault.where}", fault.fix) from fault
        for array in model.graph.initializer:
            if len(array.raw_data) >= IN_FILE_BYTES:
                _move(array, blob, places)
        found[f"{name}.onnx"] = model.SerializeToString(deterministic=True)
    return {**found, WEIGHTS: bytes(blob)}


def _move(array: Any, blob: bytearray, places: dict[bytes, int]) -> None:
    """The array's bytes to the end of `blob`, unless they lie there."""
    data = array.raw_data
    key = hashlib.sha256(data).digest()
    if key not in places:
        blob.extend(bytes(-len(blob) % ALIGNMENT))
        places[key] = len(blob)
        blob.extend(data)
    array.ClearField("raw_data")
    array.data_location = array.EXTERNAL
    for word, value in (("location", WEIGHTS), ("offset", places[key]), ("length", len(data))):
        array.external_data.add(key=word, value=str(value))


def ports_of(graph: Graph) -> dict[str, Any]:
    """The graph's ports for the manifest."""
    kinds = (("inputs", graph.inputs()), ("outputs", graph.outputs))
    return {kind: {n: {"shape": list(p.shape), "dtype": p.dtype} for n, p in ports.items()} for kind, ports in kinds}


def manifest_text(fields: Mapping[str, Any], files: Mapping[str, bytes]) -> str:
    """manifest.json: what the bundle is, and the SHA-256 of each file."""
    return json.dumps({**fields, "files": {n: sha256(data) for n, data in files.items()}}, indent=1) + "\n"


def check_files(bundle: Path, raw: Mapping[str, Any]) -> None:
    """EdgewmError unless every file of the bundle is there and is what the manifest says."""
    for name, wanted in raw["files"].items():
        file = Path(bundle) / name
        if not file.is_file():
            raise EdgewmError(f"no {name}", str(bundle), "copy the whole bundle, or build it again")
        if (found := sha256(file.read_bytes())) != wanted:
            raise EdgewmError(
                f"{name} has SHA-256 {found[:16]}, the manifest says {wanted[:16]}", str(file),
                "copy or build the bundle again: nothing of it was run",
            )  # fmt: skip


def verifier(bundle: Path, manifest: Manifest) -> Callable[[str, Call], None]:
    """Holds a compiled graph, by name, to the bundle's golden answers: EdgewmError where it answers otherwise."""
    answers = golden.read((bundle / GOLDEN).read_bytes())

    def verify(name: str, graph: Call) -> None:
        golden.verify(name, graph, answers, manifest.planner, f"{bundle / name}.onnx by {manifest.backend}")

    return verify


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


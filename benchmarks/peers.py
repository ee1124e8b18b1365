"""The peers: who is measured beside edgewm, on upstream's graph and on edgewm's exact graph, each at its best settings.

A peer's `start` prepares one work on one graph and returns the function that does it once, arrays in, arrays out. On
upstream's graph torch runs upstream's own module; the others run what torch's own exporter makes of it. The exact graph
is exported by edgewm (`edgewm/onnx_graph.py`, `torch_graph.py`), in the operations a peer is fast at.

Settings were chosen by trying: attention as one operation is torch's faster one in fp32 and its slower one under
autocast, and torch.compile is no faster for it; `freezing` packs weights once, as edgewm does when it builds.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from onnx_peers import lacking, onnxruntime_fp32, onnxruntime_int8, openvino_float, openvino_int8
from torch_graph import module_of
from works import Feeds, Run, Work

GRAPHS = ("upstream", "exact")
COMPILE_FLAGS = {"freezing": True}
MEANT = (RuntimeError, ImportError, OSError, ValueError)  # what a library says when it cannot


@dataclass(frozen=True)
class Peer:
    """`start(work, graph)` prepares it; `lacks` says why it cannot run here, None where it can."""

    name: str
    precision: str
    start: Callable[[Work, str], tuple[Run, str]]
    lacks: Callable[[], str | None] = lambda: None


@dataclass(frozen=True, eq=False)
class Contestant:
    """A peer ready to be timed on one graph; `settings` says which of its ways was fastest, where it has several."""

    name: str
    graph: str
    precision: str
    run: Run
    settings: str = ""


# --------------------------------------------------------------------------------------------------------------- torch


def torch_run(work: Work, graph: str, bf16: bool, compiled: bool) -> Run:
    """torch on one graph; torch.set_num_threads is the caller's."""
    if graph == "upstream":
        call, names, outputs = work.call, work.inputs, work.outputs
    else:
        without = ("attention",) if bf16 or compiled else ()
        exact = work.graphs[graph]
        call, names, outputs = module_of(exact, work.weights[graph], without), tuple(exact.inputs()), work.outputs
    if compiled:
        call = torch.compile(call, fullgraph=True, dynamic=False, options=COMPILE_FLAGS)

    def run(feeds: Feeds) -> Mapping[str, np.ndarray]:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            found = call(*(torch.from_numpy(feeds[name]) for name in names))
        return {name: tensor.float().numpy() for name, tensor in zip(outputs, found, strict=True)}

    run(work.feeds[graph])  # compiles
    return run


def torch_peer(bf16: bool, compiled: bool) -> Callable[[Work, str], tuple[Run, str]]:
    return lambda work, graph: (torch_run(work, graph, bf16, compiled), "")


def no_compiler() -> str | None:
    """Why torch.compile cannot run here."""
    return None if shutil.which("g++") else "torch.compile needs g++, which is missing"


# ------------------------------------------------------------------------------------------------------------ the list


PEERS = (
    Peer("torch eager", "fp32", torch_peer(False, False)),
    Peer("torch autocast", "bf16", torch_peer(True, False)),
    Peer("torch.compile", "fp32", torch_peer(False, True), no_compiler),
    Peer("torch.compile autocast", "bf16", torch_peer(True, True), no_compiler),
    Peer("onnxruntime", "fp32", onnxruntime_fp32, lacking("onnx", "onnxruntime", "onnxscript")),
    Peer("onnxruntime", "int8", onnxruntime_int8, lacking("onnx", "onnxruntime", "onnxscript")),
    Peer("openvino", "fp32", openvino_float("f32"), lacking("onnx", "openvino", "onnxscript")),
    Peer("openvino", "bf16", openvino_float("bf16"), lacking("onnx", "openvino", "onnxscript")),
    Peer("openvino", "int8", openvino_int8, lacking("onnx", "openvino", "nncf", "onnxscript")),
)
NOT_MEASURED = (
    {
        "name": "jepa.cpp", "graph": "upstream", "precision": "fp32, q8_0",
        "reason": "no package of it is published (github.com/aselimc/jepa.cpp is built from source by hand), and its "
        "LeWM is rolled out for one candidate at a time, without a planner around it",
    },
)  # fmt: skip
NAMES = tuple(dict.fromkeys(peer.name for peer in PEERS))


def started(
    peers: Sequence[Peer], work: Work, graphs: Sequence[str], say: Callable[[str], None]
) -> tuple[list[Contestant], list[dict[str, str]]]:
    """The peers that run here, ready to be timed, and for each other one the reason."""
    ready, skipped = [], []
    for graph in graphs:
        for peer in peers:
            reason = peer.lacks()
            began = time.perf_counter()
            if reason is None:
                try:
                    run, settings = peer.start(work, graph)
                    ready.append(Contestant(peer.name, graph, peer.precision, run, settings))
                except MEANT as fault:
                    reason = f"{type(fault).__name__}: {str(fault).strip().splitlines()[0]}"
            told = reason or f"ready after {time.perf_counter() - began:.0f} s"
            say(f"{work.name}: {peer.name} {peer.precision}, {graph} graph: {told}")
            if reason is not None:
                skipped.append({"name": peer.name, "graph": graph, "precision": peer.precision, "reason": reason})
    return ready, skipped


def resident_mib() -> int:
    """Memory this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20

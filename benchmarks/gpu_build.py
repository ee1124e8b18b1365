"""What travels to a machine with a GPU: bundles, kernel cases, and what a CPU answers to all of them.

FOLDER/index.json     bundles, their sections in pieces, and the cases
FOLDER/pieces/*.z     pieces of sections by SHA-256, each once however many bundles hold it, compressed
FOLDER/answers.npz    inputs and answers, those of entries and samples of those of cases
FOLDER/NAME/          libedgewm.so of a bundle, for x86-64, and the text its kernels were compiled from

A bundle for this machine's CPU gives the answers: the tests hold it to the oracle bit for bit. Weights are coarse (15
levels of a power of two), so that they travel small; no time depends on what they are.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gpu_cases
import numpy as np
import torch
from step import exact_program, planner_of

from edgewm import format as ewm
from edgewm.binding import Runtime
from edgewm.build import manifest_of
from edgewm.bundle import compile_bundle, compile_gpu_bundle, pack, target_name
from edgewm.cuda.compile import Compiled, compile_cuda
from edgewm.cuda.schedule import schedule_gpu
from edgewm.cuda.source import HEADERS, cuda_text
from edgewm.emit import emit, schedule_program
from edgewm.errors import EdgewmError
from edgewm.estimate.gpu_probe import ceilings_text
from edgewm.estimate.placed import Placement
from edgewm.golden import example_inputs
from edgewm.models import Model, capture_model, load, synthetic
from edgewm.ops import make
from edgewm.passes import LOWERING, run
from edgewm.program import Graph, Node, Planner, Program, rewrite
from edgewm.quantize import NAMED, recipe_of
from edgewm.rounding import tensor_rounding
from edgewm.target import Target, resolve

BOARD = "h100"
ORIN, PUBLISHED = "sm_87", (300, 30, 5)  # samples, iterations, horizon
SEED, SAMPLE = 0, 1024

Say = Callable[[str], None]
Compiler = Callable[..., Compiled]


@dataclass(frozen=True, eq=False)
class Subject:
    """A model's plan after the exact passes, and each number of iterations and each precision that gets a bundle."""

    name: str
    exact: Program
    iterations: tuple[int, ...]
    precisions: tuple[str, ...] = NAMED
    orins: tuple[str, ...] = ()  # precisions whose longest plan is given to every other board too
    persistent: tuple[str, ...] = ()  # and those where it is also run by few launches that stay


def lewm(**sizes: int) -> Model:
    """LeWM 18M, or of other sizes, with coarse weights."""
    model = synthetic.lewm(SEED, **sizes)
    with torch.no_grad():
        for tensor in model.torch.state_dict().values():
            if tensor.is_floating_point() and tensor.ndim > 1:
                tensor.copy_(torch.from_numpy(gpu_cases.coarse(tensor.numpy())))
    return model


def boards() -> tuple[Target, ...]:
    """The H100, and the H100 that is given Orin's code: a cubin it does not load, whose PTX its driver compiles."""
    h100, _ = resolve(BOARD)
    return h100, replace(h100, gpu=replace(h100.gpu, sm=ORIN))


def subjects() -> list[Subject]:
    """LeWM at its published planner, one iteration and all, and the reference model that ships, as it ships."""
    reference = load("reference")
    return [
        Subject("lewm", exact_plan(lewm(), PUBLISHED), (1, PUBLISHED[1]), orins=("bf16", "w8a8"), persistent=("w8a8",)),
        Subject("reference", exact_plan(reference), (reference.planner.iterations,)),
    ]


def exact_plan(model: Model, budget: tuple[int, int, int] | None = None) -> Program:
    """encode, score and plan; `budget`: samples, iterations, horizon, where they are not the model's own."""
    planner = model.planner
    if budget is not None:
        samples, iterations, horizon = budget
        planner = replace(planner_of(model, samples, horizon, iterations), warm_start=False)
    captured = capture_model(model, planner)
    return exact_program(captured.with_(entries={k: captured.entries[k] for k in ("encode", "score", "plan")}))


def build(
    folder: Path, subjects: Sequence[Subject], cases: Sequence[gpu_cases.Case], boards: Sequence[Target],
    say: Say = print, compiler: Compiler = compile_cuda,
) -> None:  # fmt: skip
    """Everything, into FOLDER: all for the first of `boards`, for the others what is in their precision."""
    folder.mkdir(parents=True, exist_ok=True)
    store = Store(folder, compiler)
    for subject in subjects:
        build_subject(store, subject, boards, say)
    for precision in sorted({p for case in cases for p in case.precisions}):
        build_cases(store, cases, precision, boards, say)
    gpu = boards[0].gpu
    store.index["board"] = boards[0].name
    ceilings = compiler(ceilings_text(), HEADERS, gpu.sm, gpu.toolkit)
    store.index["ceilings"] = store.put(ceilings.cubin)
    store.write()
    for name, reason in store.index["refused"].items():
        say(f"refused: {name}: {reason}")
    say(f"{store.bytes / 2**20:.1f} MiB in {folder}")


# ---------------------------------------------------------------------------------------------- models


def build_subject(store: Store, subject: Subject, boards: Sequence[Target], say: Say) -> None:
    """Each precision and number of iterations for GPUs; answers by a CPU."""
    whole = subject.exact.planner.iterations
    shipped = subject.exact.with_(entries={k: subject.exact.entries[k] for k in ("encode", "plan")})
    for precision in subject.precisions:
        say(f"{subject.name}: {precision}")
        lowered = run(shipped.with_(recipe=recipe_of(subject.exact, precision), target=boards[0]), LOWERING)
        for iterations in subject.iterations:
            program = with_iterations(lowered, whole, iterations)
            key = f"{subject.name}-{precision}-{iterations}"
            given = {entry: example_inputs(program, entry, SEED) for entry in program.entries}
            facts = {
                "key": key,
                "precision": precision,
                "iterations": iterations,
                "deviation": program.planner.var_scale,
                "entries": store.answer(key, program, given),
            }
            for board in boards if iterations == whole and precision in subject.orins else boards[:1]:
                store.bundle(key, program, precision, board, facts)
            if iterations == whole and precision in subject.persistent:
                store.bundle(key, program, precision, boards[0], facts, persistent=True)


def with_iterations(program: Program, before: int, after: int) -> Program:
    """The same plan with another number of rounds."""

    def rule(node: Node, sources: tuple[Node, ...]) -> Node:
        attrs = dict(node.attrs)
        changed = {"count": after} if node.op == "repeat" and node["count"] == before else {}
        return make(node.op, *sources, **(attrs | changed))

    entries = {**program.entries, "plan": Graph(rewrite(program.entries["plan"].outputs, rule))}
    return program.with_(entries=entries, planner=replace(program.planner, iterations=after))


# ---------------------------------------------------------------------------------------------- cases


def build_cases(
    store: Store, found: Sequence[gpu_cases.Case], precision: str, boards: Sequence[Target], say: Say
) -> None:
    """All cases of a precision as the entries of one bundle."""
    say(f"cases: {precision}")
    mine = [case for case in found if precision in case.precisions]
    program = gpu_cases.program_of(mine, precision).with_(target=boards[0], planner=Planner())  # a manifest names one
    key = f"cases-{precision}"
    facts: dict[str, Any] = {"key": key, "precision": precision, "cases": {}}
    with store.on_cpu(program) as runtime:
        for case in mine:
            entry, inputs = gpu_cases.entry_of(case), gpu_cases.inputs_of(case)
            y = runtime.run_entry(entry, **inputs)["y"]
            at = np.sort(np.random.default_rng(SEED).choice(y.size, min(SAMPLE, y.size), replace=False))
            rounding = gpu_cases.rounding(case, inputs).reshape(-1)[at] if precision == "bf16" else np.zeros(at.size)
            store.arrays |= {
                f"{key}/{entry}/at": at, f"{key}/{entry}/y": y.reshape(-1)[at],
                f"{key}/{entry}/rounding": rounding.astype(np.float32),
            }  # fmt: skip
            facts["cases"][entry] = {
                "name": case.name, "model": case.model, "kind": case.kind, "flops": case.flops,
                "sha256": None if precision == "bf16" else hashlib.sha256(y.tobytes()).hexdigest(),
            }  # fmt: skip
    for board in boards if precision != "fp32" else boards[:1]:
        store.bundle(key, program, precision, board, facts)


# ---------------------------------------------------------------------------------------------- the folder


class Store:
    """A folder that is being filled."""

    def __init__(self, folder: Path, compiler: Compiler):
        self.folder, self.bytes, self.compiler = folder, 0, compiler
        self.index: dict[str, Any] = {"schema_version": 1, "bundles": {}, "refused": {}}
        self.arrays: dict[str, np.ndarray] = {}

    def put(self, data: bytes) -> str:
        """The name of a piece."""
        name = hashlib.sha256(data).hexdigest()[:24]
        path = self.folder / "pieces" / f"{name}.z"
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            path.write_bytes(zlib.compress(planes(data), 6))
        return name

    def bundle(
        self, key: str, program: Program, precision: str, board: Target, facts: Mapping[str, Any],
        persistent: bool = False,
    ) -> None:  # fmt: skip
        """A bundle for a GPU, in pieces; `persistent`: with launches that follow on each other run as one."""
        name, mode = f"{key}{'-persistent' if persistent else ''}-{board.gpu.sm}", board.mode_named(None)
        manifest = manifest_of(program, board, mode, precision, 1.0, 1, SEED, {}, Placement("gpu", "to be measured"))
        schedule = schedule_gpu(program)
        here = self.folder / name
        here.mkdir(exist_ok=True)
        try:
            sections, paths = compile_gpu_bundle(
                program, schedule, manifest, board, mode, here, persistent, self.compiler
            )
        except EdgewmError as fault:  # a gate: the others still travel
            self.index["refused"][name] = f"{fault.what}; {fault.where}"
            return
        (here / "kernels.cu").write_text(cuda_text(emit(program, schedule, manifest)[1], persistent))
        for made in ("edgewm-tick", "edgewm.h"):
            (here / made).unlink()
        self.index["bundles"][name] = {
            **facts, "sm": board.gpu.sm, "persistent": persistent, "target": target_name(board, "gpu"),
            "kernels_sha256": paths["kernels_sha256"].hex(),
            "sections": {key: [self.put(piece) for piece in pieces(key, sections)] for key in sections},
        }  # fmt: skip

    def on_cpu(self, program: Program) -> Runtime:
        """A bundle of the same program for this machine's CPU, gone with the process."""
        here, _ = resolve("host")
        folder = Path(tempfile.mkdtemp(prefix="edgewm-"))
        sections, paths = compile_bundle(program, schedule_program(program, here.isa), {}, here, folder)
        (folder / "model.ewm").write_bytes(pack(sections, here, paths))
        return Runtime(folder, 2)

    def answer(self, key: str, program: Program, inputs: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:
        """Answers of every entry, kept; for each how far a GPU's may lie from them, as `rounding.py` says."""
        told = {}
        with self.on_cpu(program) as runtime:
            for entry, given in inputs.items():
                found = runtime.run_entry(entry, **given)
                self.arrays |= {f"{key}/{entry}/in/{n}": a for n, a in given.items()}
                self.arrays |= {f"{key}/{entry}/out/{n}": a for n, a in found.items()}
                told[entry] = {"tensor_rounding": tensor_rounding(program.entries[entry])}
        return told

    def write(self) -> None:
        np.savez_compressed(self.folder / "answers.npz", **self.arrays)
        (self.folder / "index.json").write_text(json.dumps(self.index, indent=1, sort_keys=True) + "\n")
        self.bytes = sum(p.stat().st_size for p in self.folder.rglob("*") if p.is_file())


def pieces(name: str, sections: Mapping[str, bytes]) -> list[bytes]:
    """A section; the weights cut where an operand begins, so that what two bundles share is kept once."""
    if name != "weights":
        return [sections[name]]
    operands = np.frombuffer(sections["operands"], ewm.OPERAND)
    cuts = sorted({0, *map(int, operands["offset"][operands["space"] == ewm.WEIGHTS])})
    return [sections[name][a:b] for a, b in zip(cuts, [*cuts[1:], None], strict=True)]


def planes(data: bytes) -> bytes:
    """The first bytes of all words, then the second, ...: what is alike stands together; at the end what is left."""
    whole = len(data) // 4 * 4
    return np.frombuffer(data[:whole], np.uint8).reshape(-1, 4).T.tobytes() + data[whole:]


def words(data: bytes) -> bytes:
    """What `planes` was made of."""
    whole = len(data) // 4 * 4
    return np.frombuffer(data[:whole], np.uint8).reshape(4, -1).T.tobytes() + data[whole:]


def index_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "index.json").read_text())


def opened(folder: Path, name: str, index: Mapping[str, Any], out: Path) -> dict[str, bytes]:
    """The sections of a bundle, which is put together in `out`: model.ewm and libedgewm.so."""
    facts = index["bundles"][name]
    sections = {key: b"".join(piece(folder, p) for p in parts) for key, parts in facts["sections"].items()}
    out.mkdir(parents=True, exist_ok=True)
    (out / "model.ewm").write_bytes(ewm.pack(sections, facts["target"], bytes.fromhex(facts["kernels_sha256"])))
    (out / "libedgewm.so").write_bytes((folder / name / "libedgewm.so").read_bytes())
    return sections


def piece(folder: Path, name: str) -> bytes:
    return words(zlib.decompress((folder / "pieces" / f"{name}.z").read_bytes()))

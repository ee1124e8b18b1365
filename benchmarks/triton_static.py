"""edgewm's CUDA kernels beside Triton's of the same calls, as far as that can be seen without a GPU: compiled for Orin.

    python benchmarks/triton_static.py [--no-record]         needs: pip install triton==3.5.1 'edgewm[gpu]'

LeWM's shapes (gpu_cases.py). Triton's kernels are `triton_kernels.py`, each in several tiles; the one whose estimate is
least and that spills nothing has the row. Its PTX and edgewm's go through the same assembler for JetPack 6, their facts
and times through the same functions (edgewm/cuda/bound.py): tiles counted whole, waves, what blocks bring, bytes beyond
the L2, nodes of a graph. Bytes are those of the arrays that go in and out of launches, once, for both. `issue` stands
beside these limits: instructions at four a clock, from the machine code, of the loops that multiply, or of all of a
kernel without loops, as some of Triton's are. Nothing ran on a board.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import gpu_cases
from machine_code import MULTIPLIES, Code, codes_of, each_operation, listing_of
from recording import add_flags, finish

from edgewm.build import manifest_of
from edgewm.bundle import compile_gpu_bundle, pack
from edgewm.cuda import bound, launches
from edgewm.cuda.compile import KernelFacts, assembled
from edgewm.cuda.occupancy import WARP, occupancy
from edgewm.cuda.schedule import schedule_gpu
from edgewm.errors import EdgewmError
from edgewm.estimate.cpu import bound_of
from edgewm.estimate.placed import Placement
from edgewm.kernel_times import calls_of
from edgewm.program import Planner
from edgewm.target import Mode, Target, resolve

TARGET, MODE = "orin", "MAXN"
COMMAND = "python benchmarks/triton_static.py"
WORKER = Path(__file__).with_name("triton_kernels.py")
INSTALL = "pip install triton==3.5.1"
ISSUES = 4  # instructions of warps that an SM begins in a clock
CODES = {"i8": "IMMA", "f16": "HMMA", "f32": "FFMA"}
Row = dict[str, Any]


@dataclass(frozen=True)
class Launch:
    """Of one of Triton's kernels: what is fixed (constants, `rows` of the grid), every tile to be tried, blocks of a
    tile, and what those do."""

    kernel: str
    fixed: Mapping[str, Any]
    tiles: Sequence[Mapping[str, Any]]  # constants, with `warps` and `stages`

    def blocks(self, tile: Mapping[str, Any]) -> int:
        rows = next(self.fixed[name] for name in ("ROWS", "PAIRS", "CANDIDATES", "TOKENS") if name in self.fixed)
        across = -(-self.fixed["COLUMNS"] // tile["BN"]) if self.kernel == "product" else self.fixed.get("rows", 1)
        return -(-rows // tile["BM"]) * across

    def does(self, tile: Mapping[str, Any]) -> bound.Tile | None:
        """None where no tile is multiplied."""
        blocks, depth = self.blocks(tile), self.fixed["DEPTH"]
        if self.kernel == "product":
            each = float(blocks * depth)
            return bound.Tile("i8", 2 * tile["BM"] * tile["BN"] * each, (tile["BM"] + tile["BN"]) * each)
        if self.kernel == "product_window":
            columns = 8 * self.fixed["WIDTH"]  # of three tokens; the first one's query is not needed
            each = float(blocks * depth)
            return bound.Tile("i8", 2 * tile["BM"] * columns * each, (3 * tile["BM"] + columns) * each)
        if self.kernel == "flash":
            keys = -(-self.fixed["TOKENS"] // tile["BN"]) * tile["BN"]
            form = "f16" if self.fixed["HALF"] else "f32"
            return bound.Tile(form, 4.0 * blocks * tile["BM"] * keys * depth, 0.0)
        return None


@dataclass(frozen=True)
class Comparison:
    """A case of gpu_cases.py in a precision ("": edgewm has no such kernel), and Triton's launches for it in groups,
    each priced as edgewm's region is, its core last; `moved` by each group, in the words of `edgewm.call_work`."""

    name: str
    case: str
    precision: str
    groups: Sequence[Sequence[Launch]]
    moved: Sequence[Mapping[str, int]]


def tiles(warps: Sequence[int], stages: Sequence[int], **choices: Sequence[int]) -> list[dict[str, int]]:
    every = {**choices, "warps": warps, "stages": stages}
    return [dict(zip(every, values, strict=True)) for values in itertools.product(*every.values())]


def rows_of(rows: int, inputs: int, norm: bool) -> Launch:
    fixed = {"ROWS": rows, "DEPTH": inputs, "PADDED": launches.power_of_two(inputs, 1 << 20), "NORM": norm}
    return Launch("quantize_rows", fixed, tiles((4,), (1,), BM=(1, 2, 4) if inputs < 512 else (1,)))


def product_of(rows: int, inputs: int, outputs: int, gelu: bool = False, residual: bool = False) -> Launch:
    fixed = {"ROWS": rows, "DEPTH": inputs, "COLUMNS": outputs, "GROUP": 8, "GELU": gelu, "RESIDUAL": residual}
    found = tiles((4, 8), (3,), BM=(32, 64, 128), BN=(64, 128), BK=(64,))
    longer = tiles((4, 8), (3,), BM=(64,), BN=(64, 128), BK=(128,)) if inputs % 128 == 0 else []
    return Launch("product", fixed, found + longer)


def moved_by(rows: int, inputs: int, outputs: int, written: int) -> dict[str, int]:
    """Bytes of a product of quantized rows: f32 in, weights with what stands beside them, so many numbers written."""
    return {"arena": 4 * (rows * inputs + written), "scratch": rows * (inputs + 8), "weights": outputs * (inputs + 12)}


def comparisons(stack: gpu_cases.Stack, encoder: Sequence[int]) -> list[Comparison]:
    """Of a LeWM whose predictor is `stack` and whose encoder's attention has the shape `encoder`."""
    candidates, inner = prod(stack.lead), stack.heads * stack.depth
    rows, width, mlp, depth = candidates * stack.tokens, stack.width, stack.mlp, stack.depth
    up = [rows_of(rows, width, True), product_of(rows, width, mlp, gelu=True)]
    down = [rows_of(rows, mlp, False), product_of(rows, mlp, width, residual=True)]
    apart = [rows_of(rows, depth, False), product_of(rows, depth, 3 * inner)]
    window = [
        Launch("window", {"PAIRS": candidates * stack.heads, "DEPTH": depth}, tiles((1, 4), (1,), BM=(2, 4, 8, 16)))
    ]
    fixed = {"CANDIDATES": candidates, "DEPTH": depth, "WIDTH": depth, "HEADS": stack.heads, "rows": stack.heads}
    fused = Launch("product_window", fixed, tiles((4, 8), (1,), BM=(16, 32, 64), BK=(64,)))
    attended = {"arena": 16 * rows * inner}
    *_, heads, tokens, depth = encoder
    flash = {"TOKENS": tokens, "DEPTH": depth, "rows": heads}
    seen = {"arena": 16 * heads * tokens * depth}
    vit = tiles((4,), (2,), BM=(16, 32, 64), BN=(32, 64))
    qkv = moved_by(rows, stack.depth, 3 * inner, rows * inner)
    return [
        Comparison("up", "lewm up", "w8a8", [up], [moved_by(rows, width, mlp, rows * mlp)]),
        Comparison("down", "lewm down", "w8a8", [down], [moved_by(rows, mlp, width, 2 * rows * width)]),
        Comparison("qkv + window", "lewm attention", "w8a8", [[apart[0], fused]], [qkv]),
        Comparison(
            "qkv, window apart", "lewm attention", "", [apart, window],
            [moved_by(rows, stack.depth, 3 * inner, 3 * rows * inner), attended],
        ),
        Comparison("window", "lewm attention", "fp32", [window], [attended]),
        Comparison("encoder", "lewm encoder", "fp32", [[Launch("flash", {**flash, "HALF": False}, vit)]], [seen]),
        Comparison("encoder fp16", "lewm encoder", "", [[Launch("flash", {**flash, "HALF": True}, vit)]], [seen]),
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------- estimates


class Part(NamedTuple):
    """One launch: its facts, with dynamic shared memory; what it does, where it is known."""

    facts: KernelFacts
    blocks: int
    threads: int
    shared_bytes: int
    does: bound.Tile | None
    code: Code

    def issued(self) -> float | None:
        """Instructions of warps, of all blocks; None where loops are not known to multiply."""
        if self.code.straight is not None:
            return float(self.code.straight * self.blocks * self.threads // WARP)
        each = each_operation(self.code.loops)
        return None if each is None or self.does is None else self.does.operations * each


def priced(parts: Sequence[Part], work: Mapping[str, int], board: Target, mode: Mode) -> Row:
    """Limits and estimate of launches that follow on each other, the core last."""
    core = parts[-1]
    limits = bound.limits_us([work], [core.does] if core.does else [], core.blocks, board, mode)
    fits = occupancy(board.gpu, core.facts.registers, core.threads, core.shared_bytes)
    threads = min(core.blocks, fits.blocks * mode.sm) * core.threads
    with_ = bound.coefficients(board, mode)
    spent = bound.spent_us(limits, work, len(parts), len(parts), threads, mode, with_)
    estimate_us, issued = sum(spent.values()), core.issued()
    issue_us = (issued or 0.0) * bound.busiest(core.blocks, mode) / (ISSUES * mode.sm * mode.gpu_mhz)
    each = each_operation(core.code.loops)
    kind = next((n for begin, n in MULTIPLIES.items() if core.does and begin.startswith(CODES[core.does.form])), 0)
    return {
        "launches": len(parts), "registers": core.facts.registers, "spill_bytes": core.facts.spill_bytes,
        "shared_bytes": core.shared_bytes, "blocks": core.blocks, "occupancy": fits.fraction,
        "instructions_a_multiply": each * kind if each and kind else None,
        "moved_mib": (work.get("weights", 0) + work.get("arena", 0) + 2 * work.get("scratch", 0)) / 2**20,
        **{f"{limit}_us": us for limit, us in limits.items()}, "bound": bound_of(limits), "estimate_us": estimate_us,
        "issue_us": issue_us, "with_issue_us": estimate_us + max(0.0, issue_us - spent["busy"]),
    }  # fmt: skip


def together(rows: Sequence[Row]) -> Row:
    """Several regions as one: the facts of that which takes longest."""
    slowest = max(rows, key=lambda row: row["estimate_us"])
    sums = {
        key: sum(row[key] or 0.0 for row in rows)
        for key in ("launches", "moved_mib", *(key for key in slowest if key.endswith("_us")))
    }
    return {**slowest, **sums}


# ---------------------------------------------------------------------------------------------- edgewm's


def ours(
    comparison: Comparison, board: Target, mode: Mode, found: Mapping[str, gpu_cases.Case]
) -> tuple[Row, Mapping[str, int]]:
    """The row of edgewm's kernels for the case, and what they do."""
    case = replace(found[comparison.case], precisions=(comparison.precision,))
    program = gpu_cases.program_of([case], comparison.precision)
    (graph,) = program.entries.values()
    program = program.with_(entries={"plan": graph}, target=board, planner=Planner())
    placed = Placement("gpu", "to be compared")
    manifest = manifest_of(program, board, mode, comparison.precision, 1.0, 1, 0, {}, placed)
    with tempfile.TemporaryDirectory(prefix="edgewm-") as made:
        folder = Path(made)
        sections, paths = compile_gpu_bundle(program, schedule_gpu(program), manifest, board, mode, folder)
        (folder / "model.ewm").write_bytes(pack(sections, board, paths))
        rows, calls = bound.bundle_rows(folder, board, mode), {call["call"]: call for call in calls_of(folder)}
    core = "attention" if comparison.case.endswith(("attention", "encoder")) else "product"
    (row,) = (row for row in rows if row["family"].startswith(core))
    group = [calls[i] for i in row["indices"]]
    facts = {f["name"]: KernelFacts(**f) for f in json.loads(sections[bound.FACTS])}
    codes = codes_of(listing_of(sections["cubin"]))
    parts = [
        Part(
            facts[f["name"]], f["blocks"], launches.THREADS, f["shared_bytes"], own_tile(group, f["blocks"]),
            codes[f["name"]],
        )
        for f in row["functions"]
    ]  # fmt: skip
    (moved,) = comparison.moved
    work = {kind: row["work"][kind] for kind in ("i8", "f32", "vector")} | moved
    return priced(parts, work, board, mode), work


def own_tile(group: Sequence[Mapping[str, Any]], blocks: int) -> bound.Tile | None:
    """`bound.tile_of`, and of an attention alone its sums counted whole."""
    if len(group) > 1 or not group[-1]["kernel"].startswith("attention"):
        return bound.tile_of(group, blocks)
    call = group[-1]
    *outer, queries, keys, depth, width = call["dims"]
    lanes, fours = -(-call["lanes"] // launches.TILE) * launches.TILE, -(-keys // launches.QUERIES) * launches.QUERIES
    rows = queries if queries == 1 else -(-queries // launches.QUERIES) * launches.QUERIES
    operations = 2.0 * prod(outer) * lanes * rows * (fours * depth + keys * width)
    return bound.Tile("f32", operations, 0.0)


# ---------------------------------------------------------------------------------------------- Triton's


def check_triton() -> None:
    if importlib.util.find_spec("triton") is None:
        raise EdgewmError("Triton's kernels need triton, which is not installed", COMMAND, INSTALL)


@cache
def written(given: str) -> dict[str, Any] | None:
    """What `triton_kernels.py` prints in a process of its own; None where the compiler refuses or aborts."""
    done = subprocess.run([sys.executable, str(WORKER), given], capture_output=True, text=True)
    if done.returncode:
        print(f"{given}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    return json.loads(done.stdout)


def compiled(launch: Launch, tile: Mapping[str, Any], board: Target) -> Part | None:
    """Triton's PTX, assembled for the board; None where a tile is refused, spills or does not fit."""
    names = {"BM", "BN", "BK"} & tile.keys()
    constants = {k: v for k, v in launch.fixed.items() if k.isupper()} | {name: tile[name] for name in names}
    given = {"kernel": launch.kernel, "constants": constants, "warps": tile["warps"], "stages": tile["stages"]}
    made = written(json.dumps(given))
    if made is None:
        return None
    cubin = assembled(made["ptx"], board.gpu.sm, board.gpu.toolkit)
    (facts,) = cubin.facts
    if facts.spill_bytes or made["shared_bytes"] > board.gpu.shared_bytes_per_block:
        return None
    code, shared = codes_of(listing_of(cubin.cubin))[facts.name], made["shared_bytes"] + facts.shared_bytes
    return Part(facts, launch.blocks(tile), tile["warps"] * WARP, shared, launch.does(tile), code)


def best(launch: Launch, work: Mapping[str, int], board: Target, mode: Mode) -> tuple[Part, str]:
    """Of all tiles the one whose estimate, of this launch alone with the work of its group, is least."""
    tried = [(part, tile) for tile in launch.tiles if (part := compiled(launch, tile, board)) is not None]
    if not tried:
        raise EdgewmError(f"Triton compiles {launch.kernel} in none of its tiles", TARGET, "try smaller ones")
    part, tile = min(tried, key=lambda t: _rank(t[0], work, board, mode))
    sides = "x".join(str(tile[name]) for name in ("BM", "BN", "BK") if name in tile)
    return part, f"{sides}, {tile['warps']} warps, {tile['stages']} stages, of {len(tried)}"


def _rank(part: Part, work: Mapping[str, int], board: Target, mode: Mode) -> tuple[float, float]:
    """Of tiles whose estimates are alike, the fewest instructions."""
    return round(priced([part], work, board, mode)["with_issue_us"], 2), part.issued() or 0.0


def theirs(comparison: Comparison, work: Mapping[str, int], board: Target, mode: Mode) -> tuple[Row, str]:
    """The row of Triton's kernels; what they compute is edgewm's `work`, all that is not multiplied in the first group,
    and the bytes are those that these launches move."""
    rows, chosen = [], []
    for i, (group, moved) in enumerate(zip(comparison.groups, comparison.moved, strict=True)):
        core = group[-1]
        own = {**moved, "vector": work["vector"] if i == 0 else 0}
        if core.kernel in ("product", "product_window"):
            own["i8"] = work["i8"]
        if core.kernel != "product":
            own["f16" if core.fixed.get("HALF") else "f32"] = work["f32"]
        picked = [best(launch, own, board, mode) for launch in group]
        rows.append(priced([part for part, _ in picked], own, board, mode))
        chosen += [f"{launch.kernel} {tile}" for launch, (_, tile) in zip(group, picked, strict=True)]
    return together(rows), "; ".join(chosen)


def compared(
    found: Sequence[Comparison], cases: Mapping[str, gpu_cases.Case], board: Target, mode: Mode
) -> Iterator[Row]:
    """edgewm's row of each, then Triton's; one without a precision follows one of the same case."""
    work: dict[str, Mapping[str, int]] = {}
    for comparison in found:
        if comparison.precision:
            own, work[comparison.case] = ours(comparison, board, mode, cases)
            yield {"name": f"{comparison.name}: edgewm", **own}
        row, chosen = theirs(comparison, work[comparison.case], board, mode)
        yield {"name": f"{comparison.name}: Triton", **row, "tiles": chosen}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    given = parser.parse_args()
    try:
        check_triton()
    except EdgewmError as fault:
        sys.exit(str(fault))
    board, mode = resolve(TARGET, MODE)
    found, run, rows = comparisons(gpu_cases.STACKS[0], gpu_cases.LEWM_ENCODER), f"{time.time_ns():x}", []
    for row in compared(found, {case.name: case for case in gpu_cases.cases()}, board, mode):
        rows.append({"table": "triton", **row, "basis": "estimated", "command": COMMAND, "run": run})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    finish(rows, given)


if __name__ == "__main__":
    main()

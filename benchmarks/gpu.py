"""edgewm on a GPU: every answer checked, everything timed, beside PyTorch on the same machine, in ten minutes.

    python benchmarks/gpu.py --build .gpu                   anywhere, with the extra [gpu]: what will travel
    python benchmarks/gpu.py --run .gpu --json rows.json    where the GPU is: numpy, torch and this repository suffice
    python benchmarks/gpu.py --record rows.json             into benchmarks/results/<gpu>.jsonl

On a machine that holds only a copy of this repository and the folder `.gpu`, one line does all of it:

    PYTHONUNBUFFERED=1 PYTHONPATH=. python3 benchmarks/gpu.py --run .gpu --seconds 540 --json $OUT/gpu.json

`--run` first measures what the GPU can do at the most by the instructions that edgewm's kernels use; then checks and
times each kernel case and each plan (sm_90's own code, and Orin's PTX as the driver compiles it); then runs PyTorch,
each part in a process that is ended when its time is over. It writes FILE after each part, says of each part that it
left out why, and prints its tables last. Exit status 1: an answer was wrong. Nothing is recorded but by `--record`, and
never what a driver that stands in was timed at.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gpu_build
import gpu_cases
import gpu_measure
import numpy as np
from gpu_driver import Gpu
from gpu_measure import Effort, Row

from edgewm.errors import EdgewmError
from edgewm.target import resolve

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
SECONDS = 540.0
STAND_IN = "Stand-in"  # the name that the tests' driver gives its device
# Parts of gpu_torch.py and the most seconds each may take, in the order they matter.
PEERS = {
    "ceilings": 40.0, "eager": 60.0, "products": 60.0, "attention": 30.0, "reduce-overhead": 110.0,
    "max-autotune": 110.0, "compiled-products": 120.0,
}  # fmt: skip
SOONER = ("ceilings", "eager", "products", "attention")  # before Orin's code, which the driver compiles first
BUNDLE_S, LEAST_S = 60.0, 8.0  # the most that a bundle takes; left, under which no part is begun
SHOWN = {
    "gpu-ceilings": ("fp32_gflops", "bf16_gflops", "int8_gops", "dram_gbps", "l2_gbps", "node_us", "launch_us"),
    "gpu-cases": ("us", "cold_us", "launches", "tflops", "of_ceiling", "answer"),
    "gpu-peers-cases": ("us", "tflops"),
    "gpu-kernels": ("ms", "calls", "us_a_call", "gflops", "gbps", "of_limit", "bound", "estimated_ms"),
    "gpu-beside": ("us", "torch_us", "torch", "times_as_fast", "matmul_alone_us"),
    "gpu-plans": ("ms", "min_ms", "cold_ms", "launches", "tflops", "estimated_ms", "answer"),
    "gpu-peers-plan": ("ms", "ready_s"),
}  # fmt: skip
MOST_KERNELS = 12  # of a plan, in the printed table

Step = Callable[[], list[Row]]
Outcome = tuple[list[Row], str | None]  # rows, and why some are missing


@dataclass(frozen=True, eq=False)
class Part:
    """`do(most_s)` is begun where there is time left, and ends by itself after `most_s` at the latest."""

    name: str
    most_s: float
    do: Callable[[float], Outcome]


def apart(step: Step, most_s: float) -> Outcome:
    """A step in a process of its own: a kernel that dies, or does not end, takes nothing else with it."""
    here, there = multiprocessing.Pipe(duplex=False)

    def child() -> None:
        there.send(inline(step, most_s))
        there.close()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    there.close()
    try:
        if here.poll(most_s):
            return here.recv()
        process.kill()
        return [], f"not done after {most_s:.0f} s"
    except EOFError:
        process.join()
        return [], f"its process ended by itself with {process.exitcode}"
    finally:
        process.join()


def inline(step: Step, most_s: float) -> Outcome:
    try:
        return step(), None
    except EdgewmError as fault:
        return [], f"{fault.what}; {fault.where}"
    except Exception:  # of this script or its machine: told with its place, the other parts go on
        return [], traceback.format_exc(limit=-2)


def run(
    folder: Path, json_file: Path | None, limit_s: float = SECONDS, effort: Effort | None = None,
    opening: Callable[[str], None] = lambda name: None, peers: Mapping[str, float] = PEERS,
    cases: Sequence[gpu_cases.Case] | None = None, isolated: Callable[[Step, float], Outcome] = apart,
) -> dict[str, Any]:  # fmt: skip
    """The report, as `--json` has it: `gpu`, `rows`, `skipped` [{name, reason}], `wrong` [text], `seconds`.

    `opening(name)` is called before a bundle (or "ceilings") is opened, `isolated` runs what needs the GPU: tests say
    then which kernels stand in, and keep it in their own process.
    """
    began, index = time.monotonic(), gpu_build.index_of(folder)
    answers = np.load(folder / "answers.npz")
    board, mode = resolve(index["board"])
    effort = effort or Effort(l2_bytes=board.gpu.l2_bytes)
    known = {gpu_cases.entry_of(c): c for c in (gpu_cases.cases() if cases is None else cases)}
    refused = [{"name": name, "reason": f"not built: {why}"} for name, why in index["refused"].items()]
    report: dict[str, Any] = {"schema_version": 1, "gpu": None, "rows": [], "skipped": refused, "wrong": []}

    def ceilings() -> list[Row]:
        opening("ceilings")
        with Gpu() as gpu:
            return gpu_measure.ceiling_rows(gpu, folder, index, effort)

    def bundle(name: str) -> list[Row]:
        opening(name)
        machine = next(row for row in report["rows"] if row["table"] == "gpu-ceilings")
        with Gpu() as gpu, tempfile.TemporaryDirectory(prefix="edgewm-") as work:
            given = (gpu, folder, name, index, answers, Path(work), machine, effort)
            if "cases" in index["bundles"][name]:
                return gpu_measure.case_rows(*given, known)
            return gpu_measure.plan_rows(*given, board, mode)

    def of_bundles(is_orins: bool) -> list[Part]:
        found = [(name, facts) for name, facts in index["bundles"].items() if (facts["sm"] != board.gpu.sm) == is_orins]
        found.sort(key=lambda item: ("cases" not in item[1], item[1].get("iterations", 0), item[0]))
        return [Part(name, BUNDLE_S, partial(isolated, partial(bundle, name))) for name, _ in found]

    def of_torch(names: Iterable[str]) -> list[Part]:
        return [Part(f"torch {name}", peers[name], partial(peer, name)) for name in names if name in peers]

    parts = [Part("ceilings", BUNDLE_S, partial(isolated, ceilings)), *of_bundles(False), *of_torch(SOONER)]
    parts += [*of_bundles(True), *of_torch(name for name in peers if name not in SOONER)]
    for part in parts:
        left_s = limit_s - (time.monotonic() - began)
        print(f"{limit_s - left_s:6.1f} s  {part.name}", file=sys.stderr, flush=True)
        late = left_s < LEAST_S and part is not parts[0]
        rows, reason = ([], f"{limit_s:.0f} s were over") if late else part.do(min(part.most_s, max(left_s, LEAST_S)))
        report["rows"] += rows
        if reason:
            report["skipped"].append({"name": part.name, "reason": reason})
        finish(report, json_file, began)
        if part is parts[0] and not rows:
            raise EdgewmError(
                f"the GPU's ceilings were not measured: {reason}", str(folder), "see what the driver says"
            )
    report["skipped"].append({"name": "TensorRT", "reason": tensorrt_reason()})
    report["rows"] += beside(report["rows"])
    return finish(report, json_file, began)


def finish(report: dict[str, Any], json_file: Path | None, began: float) -> dict[str, Any]:
    """The report as far as it is, and its file."""
    report["gpu"] = next((row["name"] for row in report["rows"] if row["table"] == "gpu-ceilings"), None)
    report["wrong"] = gpu_measure.wrong(report["rows"])
    report["seconds"] = round(time.monotonic() - began, 1)
    if json_file:
        json_file.write_text(json.dumps(report, indent=1) + "\n")
    return report


def peer(name: str, most_s: float) -> tuple[list[Row], str | None]:
    """Rows of one part of gpu_torch.py, and why some are missing."""
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as out:
        command = [sys.executable, str(HERE / "gpu_torch.py"), name, "--out", out.name]
        try:
            ended = subprocess.run(command, timeout=most_s, capture_output=True, text=True)
            reason = None if ended.returncode == 0 else (ended.stderr.strip().splitlines() or ["it ended"])[-1]
        except subprocess.TimeoutExpired:
            reason = f"not done after {most_s:.0f} s"
        return [json.loads(line) for line in Path(out.name).read_text().splitlines()], reason


def beside(rows: Sequence[Row]) -> list[Row]:
    """Each case in its GPU's own code beside the fastest that torch did with the same neighbours in that precision."""
    found = []
    for row in (r for r in rows if r["table"] == "gpu-cases" and not r["name"].endswith(" sm_87")):
        name = row["name"].rpartition(" ")[0]
        theirs = {r["name"].removeprefix(f"{name} "): r["us"] for r in rows
                  if r["table"] == "gpu-peers-cases" and r["name"].startswith(f"{name} torch")}  # fmt: skip
        fused = {how: us for how, us in theirs.items() if not how.endswith("alone")}
        if fused:
            best = min(fused, key=fused.__getitem__)
            found.append({
                "table": "gpu-beside", "name": name, "us": row["us"], "torch_us": fused[best], "torch": best,
                "times_as_fast": fused[best] / row["us"], "matmul_alone_us": theirs.get("torch matmul alone"),
            })  # fmt: skip
    return found


def tensorrt_reason() -> str:
    if importlib.util.find_spec("tensorrt") is None:
        return "not installed"
    return "installed, and not timed by this script: `edgewm build --backend tensorrt` and its runner do"


# ---------------------------------------------------------------------------------------------- report


def show(report: Mapping[str, Any]) -> str:
    """Tables for people, the plans last."""
    text = []
    for table, columns in SHOWN.items():
        rows = [row for row in report["rows"] if row["table"] == table]
        if table == "gpu-kernels":
            rows = [row for row in rows if "sm_87" not in row["name"]]
            rows = [r for plan in dict.fromkeys(kernel_of(r) for r in rows)
                    for r in [row for row in rows if kernel_of(row) == plan][:MOST_KERNELS]]  # fmt: skip
        text += ["", table, *table_lines(rows, columns)] if rows else []
    text += ["", *(f"left out: {s['name']}: {s['reason']}" for s in report["skipped"])]
    text += [f"WRONG {line}" for line in report["wrong"]]
    return "\n".join([*text, f"{report['gpu']}: {len(report['wrong'])} wrong, {report['seconds']:.0f} s"])


def kernel_of(row: Row) -> str:
    return row["name"].partition(":")[0]


def table_lines(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
        return "-" if value is None else str(value)

    body = [[row["name"], *(cell(row.get(c)) for c in columns)] for row in rows]
    wide = [max(len(line[i]) for line in [["", *columns], *body]) for i in range(len(columns) + 1)]
    return ["  " + "  ".join([line[0].ljust(wide[0]), *(c.rjust(w) for c, w in zip(line[1:], wide[1:], strict=True))])
            for line in [["", *columns], *body]]  # fmt: skip


def record(report: Mapping[str, Any], results: Path = RESULTS) -> Path:
    """Append the rows to this GPU's file. EdgewmError for what was not measured on one."""
    if STAND_IN in str(report["gpu"]):
        raise EdgewmError(
            f"these rows are of {report['gpu']!r}, which is no GPU", "--record", "give what --run wrote on a GPU"
        )
    if report["wrong"]:
        raise EdgewmError(
            f"{len(report['wrong'])} answers were wrong", "--record", "times of wrong answers are worth nothing"
        )
    results.mkdir(exist_ok=True)
    file = results / f"{re.sub(r'[^a-z0-9]+', '-', report['gpu'].lower()).strip('-')}.jsonl"
    command = "python benchmarks/gpu.py --run FOLDER"
    with file.open("a") as out:
        out.writelines(json.dumps({**row, "command": command}) + "\n" for row in report["rows"])
    return file


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    doing = parser.add_mutually_exclusive_group(required=True)
    doing.add_argument("--build", type=Path, metavar="FOLDER", help="bundles, cases and answers, to be run elsewhere")
    doing.add_argument("--run", type=Path, metavar="FOLDER", help="check and time them on this machine's GPU")
    doing.add_argument("--record", type=Path, metavar="FILE", help="append what --run --json wrote to the results")
    parser.add_argument("--json", type=Path, metavar="FILE", help="of --run: the report")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help=f"of --run: the most it takes; default {SECONDS:.0f}"
    )
    given = parser.parse_args()
    try:
        if given.record:
            print(record(json.loads(given.record.read_text())))
            return 0
        if given.build:
            from gpu_build import boards, build, subjects
            from gpu_cases import cases

            build(given.build, subjects(), cases(), boards(), lambda text: print(text, file=sys.stderr, flush=True))
            return 0
        report = run(given.run, given.json, given.seconds)
    except EdgewmError as fault:
        print(fault, file=sys.stderr)
        return 2
    print(show(report))
    return int(bool(report["wrong"]))


if __name__ == "__main__":
    sys.exit(main())

"""What `plan.py` and `growth.py` found, for people, and as lines of `benchmarks/results`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from recording import RESULTS, append

from edgewm.kernel_times import kernel_lines

PUBLISHED = {"samples": 300, "horizon": 5, "iterations": 1, "threads": 2}
COMMAND = "python benchmarks/plan.py"
PEAKS = ("threads", "fp32_gflops", "bf16_gflops", "int8_gops", "dram_gbps")
PARTS = {"iteration": "ms an iteration", "encode": "ms an encoding", "whole_plan": "ms a plan"}

Report = Mapping[str, Any]


def parts(report: Report) -> Iterator[tuple[str, Report]]:
    """Each part that was measured, by name."""
    if report["rows"]:
        yield "iteration", report
    for name in ("encode", "whole_plan"):
        if name in report:
            yield name, report[name]


def title(row: Mapping[str, Any]) -> str:
    """Who, in what precision, and on which graph where both are possible."""
    where = ", exact graph" if row["graph"] == "exact" and row["name"] != "edgewm" else ""
    return f"{row['name']} {row['precision']}{where}"


# --------------------------------------------------------------------------------------------------------- for people


def show(report: Report) -> str:
    """The report for people."""
    m = report["machine"]
    peaks = ", ".join(f"{k} {number(m[k], 0)}" for k in PEAKS[1:])
    text = [f"{report['model']}, CEM {report['samples']} x H{report['horizon']}, {report['threads']} threads; {peaks}"]
    for name, part in parts(report):
        text += ["", f"{PARTS[name]:42s}   GFLOP    median      best  x eager   tensor  vector  bytes of limit"]
        text += [line(row) for row in part["rows"]]
        text += [ratio_line(found) for found in part["ratios"]]
    skipped = [*report["skipped"], *report.get("encode", {}).get("skipped", ())]
    text += ["", *(f"{title(s)}: not measured, {s['reason']}" for s in skipped)]
    for precision, rows in report.get("kernels", {}).items():
        text += ["", f"edgewm {precision} on 1 thread, the kernels:", *kernel_lines(rows)]
    return "\n".join(text)


def line(row: Mapping[str, Any]) -> str:
    limit = [number(row["limit_ms"][k]) for k in ("tensor", "vector", "bytes")]
    return (
        f"{title(row):42s} {row['flops'] / 1e9:7.1f} {row['ms']:9.2f} {row['min_ms']:9.2f} "
        f"{number(row['vs_eager'], 2):>8s} {limit[0]:>8s} {limit[1]:>7s} {limit[2]:>6s} {percent(row['of_limit']):>8s}"
    )


def ratio_line(found: Mapping[str, Any]) -> str:
    return (
        f"edgewm {found['precision']}: {found['times_faster']:.2f} times as fast as the best peer on the "
        f"{found['graph']} graph, {found['peer']} ({found['peer_ms']:.2f} ms); {found['best_over_best']:.2f} by bests"
    )


def number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


# -------------------------------------------------------------------------------------------------------- for results


def is_published(report: Report) -> bool:
    return {k: report[k] for k in PUBLISHED} == PUBLISHED


def lines(report: Report) -> list[dict[str, Any]]:
    """The rows of `benchmarks/results`; other settings than the published ones go to a table of their own."""
    published = is_published(report)
    suffix = "" if published else " {samples}xH{horizon} x{iterations} {threads}t".format(**report)
    made = []
    for name, part in parts(report):
        table = {"iteration": "plan", "encode": "encode", "whole_plan": "whole-plan"}[name]
        table = table if published else f"{table}-series"
        unit = PARTS[name].replace(" ", "_")
        made += [result(table, unit, row, suffix) for row in part["rows"]]
        made += [best(f"{table}-ratios", unit, found, suffix) for found in paired(part["ratios"])]
    return made


def result(table: str, unit: str, row: Mapping[str, Any], suffix: str = "") -> dict[str, Any]:
    return {
        "table": table, "name": title(row) + suffix, "graph": row["graph"], "GFLOP": row["flops"] / 1e9,
        unit: row["ms"], "best_ms": row["min_ms"], "times_faster_than_eager": row["vs_eager"],
        **{f"{k}_limit_ms": row["limit_ms"][k] for k in ("tensor", "vector", "bytes")}, "of_limit": row["of_limit"],
        "command": COMMAND,
    }  # fmt: skip


def paired(ratios: Sequence[Mapping[str, Any]]) -> list[dict[str, Mapping[str, Any]]]:
    """The ratios of each precision, by graph."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for ratio in ratios:
        found.setdefault(ratio["precision"], {})[ratio["graph"]] = ratio
    return list(found.values())


def best(table: str, unit: str, by_graph: Mapping[str, Mapping[str, Any]], suffix: str = "") -> dict[str, Any]:
    """One precision of edgewm beside the best peer on each graph."""
    first = next(iter(by_graph.values()))
    made: dict[str, Any] = {"table": table, "name": f"edgewm {first['precision']}{suffix}", unit: first["ms"]}
    for graph, words in (("upstream", "upstream's"), ("exact", "the_exact")):
        ratio = by_graph.get(graph)
        made[f"best_peer_on_{words}_graph"] = ratio and f"{ratio['peer']}, {ratio['peer_ms']:.3g} ms"
        made[f"times_as_fast_as_on_{words}_graph"] = ratio and ratio["times_faster"]
        made[f"{words}_by_best_rounds"] = ratio and ratio["best_over_best"]
    return {**made, "command": COMMAND}


def beside(report: Report) -> list[dict[str, Any]]:
    """What the figures rest on: the machine's peaks, versions of the peers, and who was not measured, why."""
    machine = report["machine"]
    made = [{
        "table": "plan-machine", "name": machine.get("cpu", "?"), **{k: machine.get(k) for k in PEAKS},
        "rounds": report.get("rounds"), **report.get("versions", {}), "command": COMMAND,
    }]  # fmt: skip
    for row in report["skipped"]:
        made.append({"table": "plan-skipped", "name": title(row), "reason": row["reason"], "command": COMMAND})
    return made


def record(report: Report, folder: Path = RESULTS) -> Path:
    """Append the rows to this machine's file; those of the published settings say that they are of one run."""
    if not is_published(report):
        return append(lines(report), folder)
    run = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return append([{**row, "run": run} for row in [*lines(report), *beside(report)]], folder)

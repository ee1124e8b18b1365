"""What the verbs print for people: one rich table a result, from the same JSON that `--json` writes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from typing import Any

from rich.box import SIMPLE
from rich.console import Console, Group
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from .clock import NO_RATE, judged_words
from .compare import sentences
from .kernel_times import kernel_lines
from .student import regret_of, search_of

Result = Mapping[str, Any]
SLOW_S = 2.0  # a bar appears on what takes longer
SLO_WORDS = {True: "met", False: "NOT met", None: "not enough samples to tell"}


def number(value: Any, unit: str = "", digits: int = 3) -> str:
    """A figure with its unit; a dash where it was withheld."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    text = f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{text} {unit}".rstrip()


def size(value: int | None) -> str:
    """Bytes in the largest binary unit that leaves at least one."""
    if value is None:
        return "-"
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value >= scale:
            return f"{value / scale:.1f} {unit}"
    return f"{value} B"


def table(title: str, *columns: str) -> Table:
    look = {"title_justify": "left", "box": SIMPLE, "padding": (0, 1, 0, 0), "header_style": "bold"}
    made = Table(title=title, show_header=any(columns), **look)
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i == 0 else "right", no_wrap=i == 0)
    return made


def build_table(result: Result) -> Table | Group:
    made = table("would build" if result.get("sha256") is None else "built", "", "")
    flops = result.get("flops") or {}
    for name, text in (
        ("target", f"{result['target']}, mode {result['mode']}"),
        ("precision", str(result["precision"])),
        *((("backend", _backend(result)),) if result.get("backend") else ()),
        ("bundle", str(result.get("bundle") or "-")),
        *((("student", _student(result["student"])),) if result.get("student") else ()),
        ("weights", size(result.get("weight_bytes"))),
        ("size", f"{size(result.get('bytes'))}{' (estimated: the weights)' if result.get('sha256') is None else ''}"),
        ("arena", size(result.get("arena_bytes"))),
        ("kernel calls per plan", number(result.get("calls"))),
        ("operations, upstream graph", number(flops.get("upstream"), "FLOP")),
        ("operations, exact program", number(flops.get("exact"), "FLOP")),
        ("time of a plan", "-" if result.get("backend") else _estimate(result.get("estimate_ms"))),
        ("took", number(result.get("seconds"), "s")),
    ):
        made.add_row(name, text)
    return Group(made, *_auto_tables(result["auto"])) if result.get("auto") else made


def _auto_tables(found: Result) -> Iterator[Table | Text]:
    """The front that `--precision auto` chose from, and what stayed above its fastest format."""
    title = f"precision: a plan has {number(found['budget_ms'], 'ms')} at {number(found['rate_hz'], 'Hz')}"
    front = table(title, "", "ms", "up to", "cost error", "least rank", "elites", "regret", "products")
    for i, point in enumerate(found["front"]):
        own = ", ".join(f"{n} {form}" for form, n in point["forms"].items())
        figures = (point[key] for key in ("error", "spearman_min", "elite_overlap", "regret"))
        name = f"{'> ' if i == found['chosen'] else ''}{point['name']}"
        front.add_row(name, *(number(point["plan_ms"][key]) for key in ("point", "high")), *map(number, figures), own)
    yield front
    high = [node for node in found["nodes"] if node["why"]]
    if high:
        stayed = table("products above their fastest format", "", "held as", "why")
        for node in high:
            stayed.add_row(node["name"], node["form"], node["why"])
        yield stayed


def _backend(result: Result) -> str:
    found = result.get("checked_by") or {}
    told = [str(result["backend"])]
    told += [f"golden answers met in ONNX Runtime {found['onnxruntime']}"] if found else []
    if "built_for" in found:
        told.append(f"tensorrt-rtx {found['tensorrt_rtx']} builds it for {found['built_for']}, as a stand-in")
    return "; ".join(told)


def _student(found: Mapping[str, Any]) -> str:
    """What the judge said of it."""
    verdict = found["verdict"]
    if verdict["passed"]:
        return f"{found['model']}: passed the judge's gates"
    missed = [gate["name"] for gate in verdict["gates"] if gate["passed"] is verdict["passed"]]
    said = "failed" if verdict["passed"] is False else "not enough evidence for"
    return f"{found['model']}: {said} {', '.join(missed)}"


def _estimate(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "not estimated: nothing is known of how fast this target is; for host run `edgewm targets probe`"
    between = f"{number(found['low'])} to {number(found['high'], 'ms')}"
    return f"{number(found['point'], 'ms')}, {between}; {found['source']}"


def distill_table(result: Result) -> Table | Group:
    """Every candidate considered, the chosen one marked; what the judge said of it, where it did. A predictor is told
    as layers x width/width within, with the latents that it sees."""
    columns = ["", "predictor", "sees", "jump", "format", "planner", "regret", "ms", "most", "bound"]
    has_gpu = any(found["place"] == "gpu" for found in result["considered"])
    tried = [(row["figures"] or {}).get("value") for row in result.get("trials") or ()]
    begin = any(found["planner"]["proposal"] for found in result["considered"])
    title = "considered; * begins at a proposal" if begin else "considered"
    made = table(title, *columns, *(["on"] if has_gpu else []), *(["rank, tried"] if tried else []))
    for i, found in enumerate(result["considered"]):
        shape, planner, tick = found["shape"], found["planner"], found["tick_ms"]
        sizes = ["as it is", "", ""] if shape is None else [_layers(shape), str(shape["window"]), str(shape["jump"])]
        made.add_row(
            "chosen" if found == result["chosen"] else "", *sizes, found["precision"],
            f"{planner['samples']}x{planner['iterations']}" + "*" * planner["proposal"],
            number(regret_of(result, found), digits=2), number(tick["point"]), number(tick["high"]), found["bound"],
            *([found["place"].upper()] if has_gpu else []), *([number(tried[i])] if tried else []),
        )  # fmt: skip
    said = ""
    if result["chosen"]["shape"] is None:
        is_trained = result["proposal"] is not None and result["chosen"]["planner"]["proposal"]
        asks = "MODEL with the proposal, without --dry-run" if is_trained else _build_of(result)
        said = f"no student is needed: {asks}"
    if result["verdict"] is not None:
        plan = result["verdict"]["plan"]
        regret = plan.get("search_regret", plan["regret"])  # beside the full model's own search, where that is larger
        told = _student({"model": result["student"], "verdict": result["verdict"]})
        said = (
            f"{told}; least Spearman {number(plan['spearman_min'])}, elites kept {number(plan['elite_overlap'])}, "
            f"regret {number(regret)}"
        )
    return Group(made, Text(said)) if said else made  # a caption would be as narrow as the table


def _layers(shape: Mapping[str, Any]) -> str:
    return f"{shape['depth']}x{shape['width']}/{shape['mlp_dim']}"


def proposal_line(result: Result) -> str:
    """What a proposal is worth without a search."""
    return (
        f"{result['proposal']}: its plans lose {100 * result['regret']:.2g} % of what planning gains, without a search "
        f"({result['held_out']} contexts); build it with fewer --samples and --iterations"
    )


def _build_of(result: Result) -> str:
    """The command that builds the model itself as it was chosen."""
    asked, best = result["asked"], result["chosen"]
    settings = asked["planner"] | search_of(result)
    flags = [f"--{key} {asked[key]}" for key in ("target", "mode", "threads")]
    flags += [f"--place {asked['place']}"] if asked["place"] != "auto" else []
    flags += [f"--precision {best['precision']}", *(_flag(field, value) for field, value in settings.items())]
    return f"edgewm build {asked['teacher']} {' '.join(flags)}"


def _flag(field: str, value: Any) -> str:
    """How a setting of the planner is given to `build`."""
    named = {"kind": "planner", "return_mean": "return-mean" if value else "return-best"}
    name = named.get(field, field.replace("_", "-"))
    if isinstance(value, bool):
        return f"--{name}" if value or field in named else f"--no-{name}"
    return f"--{name} {value}"


def profile_table(result: Result) -> Group:
    mode = result["mode"] or "not known"
    title = f"{result['device']}: {result['target']}, mode {mode}, {number(result['rate_hz'], 'Hz')}"
    made = table(f"{title}, {number(result['ticks'])} ticks", "milliseconds", "p50", "p99", "p99.9", "max")
    for name, key in (("action late", "act_late_ms"), ("plan", "plan_ms"), ("age of the plan", "plan_age_ms")):
        row = result.get(key) or {}
        made.add_row(name, *(number(row.get(p)) for p in ("p50", "p99", "p999", "max")))
    if result.get("jitter_ms"):
        figures = (number(result["jitter_ms"].get(p)) for p in ("p50", "p99", "p999", "max"))
        made.add_row("jitter between actions", *figures)
    loaded = result.get("loaded") or {}
    for name, key in (("action late", "act_late_ms"), ("plan", "plan_ms")) if loaded else ():
        figures = (number(loaded[key].get(p)) for p in ("p50", "p99", "p999", "max"))
        made.add_row(f"{name}, {loaded['load']} busy", *figures)
    rate, misses, upper = (result.get(k) for k in ("plans_per_s", "misses", "miss_rate_upper"))
    row = result.get("misses_in_a_row")
    in_a_row = f" ({row} in a row)" if row and row > 1 else ""
    share = NO_RATE if upper is None else f"rate below {number(upper)}"
    lines = [f"{number(rate)} plans/s; {number(misses)} misses{in_a_row}, {share}"]
    if result.get("backend"):
        lines = [f"{number(rate)} plans/s by {result['backend']}, in a loop of Python: no action is timed"]
    if result.get("period_error_ppm") is not None:
        lines.append(f"mean time between actions: {result['period_error_ppm']:+.3g} ppm off the nominal period")
    lines += [judged_words(result)] if judged_words(result) else []
    lines += [f"! {each['words']}" for each in result.get("findings") or ()]
    lines += _phase_lines(result.get("phases") or {})
    if loaded:
        lines.append(f"{loaded['load']} busy: {number(loaded['misses'])} misses")
    if result.get("golden"):
        same = "the same, bit for bit," if result["golden"]["identical"] else "as they may be"
        lines.append(f"golden answers: all {result['golden']['answers']} {same} on the device")
    environment = result.get("environment") or {}
    if environment.get("throttled"):
        lines.append(f"slowed down while it ran: {', '.join(environment['throttled'])}")
    for why, missed in groupby(environment.get("degraded") or (), key=lambda each: each["why"]):
        lines.append(f"not had: {', '.join(each['what'].replace('_', ' ') for each in missed)} ({why})")
    if result.get("peak_fraction"):
        lines.append(f"{100 * result['peak_fraction']:.0f} % of this machine's measured peak")
    if result.get("slo"):
        lines.append(f"{result['slo']}: {SLO_WORDS[result['slo_met']]}")
    lines += _headroom_lines(result.get("headroom") or {})
    if result.get("against"):
        lines += ["against the other run:", *(f"  {line}" for line in sentences(result["against"]))]
    if result.get("stages"):
        shares = [f"{name} {100 * share:.0f} %" for name, share in result["stages"].items() if share >= 0.005]
        lines.append(f"time by kernel: {', '.join(shares)}")
    lines += _gpu_lines(result.get("gpu") or {})
    if result.get("kernels"):
        lines += ["the kernels of a plan on 1 thread:", *kernel_lines(result["kernels"])]
    for key, note in (result.get("withheld") or {}).items():
        which, quantile = key.split(".")
        name = f"{which.removesuffix('_ms')} {quantile.replace('p999', 'p99.9')}"
        lines.append(f"withheld {name}: {number(note['samples'])} samples, {number(note['needs'])} needed")
    return Group(made, Text("\n".join(lines)))  # a caption would be as narrow as the table


def _phase_lines(phases: Result) -> list[str]:
    found = []
    for key, name in (("cold_start", "from a cold start to the first action"), ("first_plan", "the first plan")):
        if phases.get(key):
            most, starts = number(phases[key]["max_ms"], "ms"), len(phases[key]["each_ms"])
            found.append(f"{name}: {most} at most in {starts} starts")
    after = phases.get("after_idle")
    if after and after["plan_ms"]["p50"] is not None:
        half = number(after["plan_ms"]["p50"], "ms")
        found.append(f"after {after['gap_s']:g} s of nothing a plan takes {half} (p50)")
    return found


def _gpu_lines(found: Result) -> list[str]:
    if not found:
        return []
    size, made = number(found["graph_bytes"] / 1e6, "MB"), number(found["graph_ns"] / 1e6, "ms")
    lines = [f"graphs of {number(found['graph_nodes'])} launches and copies: {size} of the GPU, made in {made}"]
    if found["module"] == "ptx":
        lines.append("the driver compiled the kernels from PTX: the bundle holds no code for this GPU")
    if (found["launched"], found["measured"]) == ("together", "apart"):
        lines.append("kernels were timed in launches of their own; the plan runs them together, in fewer")
    return lines


def _headroom_lines(found: Result) -> list[str]:
    if not found:
        return []
    share = f"{100 * found['miss']:g} % late plans"
    if found["highest_rate_hz"] is None:
        needs = ", ".join(f"{number(n)} {name}s" for name, n in found["needs"].items())
        lines = [f"highest rate with at most {share}: withheld, it needs {needs}"]
    else:
        rate, left = number(found["highest_rate_hz"], "Hz"), found["plan_left_ms"]
        spare = f"{number(left, 'ms')} left" if left >= 0 else f"{number(-left, 'ms')} too slow"
        lines = [f"highest rate with at most {share}: {rate}, by the {found['bound_by']}; a plan has {spare}"]
    if found["stages"]:
        lines.append("a plan's stages: " + ", ".join(f"{s['stage']} {100 * s['share']:.1f} %" for s in found["stages"]))
    for gain in found["gains"][:4]:
        rate = "" if gain["highest_rate_hz"] is None else f", {number(gain['highest_rate_hz'], 'Hz')}"
        lines.append(f"{gain['change']}: a plan in {100 * gain['share']:.0f} % of the time{rate} ({gain['from']})")
    return lines


def validate_table(result: Result) -> Table | Group:
    verdict = {True: "passed", False: "failed", None: "not enough evidence"}
    made = table(f"gates: {verdict[result['passed']]}", "gate", "value", "limit", "")
    notes: dict[str, list[str]] = {}  # by what they say: many gates may lack the same
    for gate in result.get("gates", ()):
        made.add_row(gate["name"], number(gate["value"], digits=4), number(gate["limit"]), verdict[gate["passed"]])
        if gate.get("note"):
            notes.setdefault(gate["note"], []).append(gate["name"])
    loop = result.get("closed_loop") or {}
    for side in ("full", "compressed"):
        if loop.get(side):
            made.add_row(f"success, {side} model", _successes(loop[side]), "", "")
    lines = [f"{', '.join(names)}: {note}" for note, names in notes.items()]
    lines += [f"{name}: not judged, {why}" for name, why in (result.get("skipped") or {}).items()]
    lines += [f"{name}: {'; '.join(whys)}" for name, whys in (result.get("left_out") or {}).items()]
    for point in (result.get("latency") or {}).get("points", ()):
        late = point["name"] if point["name"].endswith(" ms") else f"{point['name']} ({number(point['ms'], 'ms')})"
        late = f"late by {late}" if point["ms"] else late
        sides = ", ".join(f"{side} {_successes(point[side])}" for side in ("full", "compressed"))
        lines.append(f"success with plans {late}: {sides}")
    return Group(made, Text("\n".join(lines))) if lines else made


def _successes(found: Mapping[str, Any]) -> str:
    """So many of so many, with the 95 % interval of the rate."""
    low, high = found["wilson_95"]
    return f"{found['successes']} of {found['episodes']} ({100 * low:.0f} to {100 * high:.0f} %)"


def run_table(result: Result) -> Table:
    made = table(f"closed loop in {result['env']}, {number(result['rate_hz'], 'Hz')}", "", "")
    made.add_row("reached the goal", _successes(result))
    plan, periods = result["plan_ms"], result["periods"]
    made.add_row("plan", f"p50 {number(plan['p50'])}, max {number(plan['max'], 'ms')} of {number(plan['plans'])}")
    made.add_row("periods an episode", f"median {number(periods['median'])}, max {number(periods['max'])}")
    made.add_row("film", result["gif"] or "-")
    return made


@contextmanager
def progress_bar() -> Iterator[Callable[[str, float], None] | None]:
    """`(stage, fraction)` -> a bar on stderr after two seconds, where a person watches; None where nobody does."""
    if not sys.stderr.isatty():
        yield None
        return
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=Console(stderr=True), transient=True
    )
    task, begun, shown = bar.add_task("", total=1.0), time.monotonic(), False

    def report(stage: str, fraction: float) -> None:
        nonlocal shown
        if not shown and time.monotonic() - begun > SLOW_S:
            bar.start()
            shown = True
        bar.update(task, description=stage, completed=fraction)

    try:
        yield report
    finally:
        if shown:
            bar.stop()

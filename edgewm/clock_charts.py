"""Charts of the clock as SVG text: a run over time, kernels under their roof, a plan as a flame, an estimate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, clipped, empty, figure, short, tick_x, tick_y

COLUMNS = 180
FLOOR_MS = 1e-3
BASE = HEIGHT - BOTTOM


def timeline(late_ms: Sequence[float], period_ms: float, rate_hz: float) -> str:
    """The latest action of each of some columns over the run, logarithmic; a column with a miss is red."""
    if not late_ms:
        return empty("the samples were not kept in order")
    wide = max(1, math.ceil(len(late_ms) / COLUMNS))
    tops = [max(late_ms[i : i + wide]) for i in range(0, len(late_ms), wide)]
    y, grid = log_axis([*tops, period_ms])
    seconds = len(late_ms) / rate_hz
    step = (WIDTH - LEFT - RIGHT) / len(tops)
    out = [*grid, *seconds_axis(seconds)]
    for i, top in enumerate(tops):
        css = "bar missed" if top >= period_ms else "bar"
        place = f'x="{LEFT + i * step:.1f}" y="{y(top):.1f}"'
        out.append(f'<rect class="{css}" {place} width="{max(step - 0.4, 0.7):.1f}" height="{BASE - y(top):.1f}"/>')
    at = y(period_ms)
    out.append(f'<line class="mark deadline" x1="{LEFT}" y1="{at:.1f}" x2="{WIDTH - RIGHT}" y2="{at:.1f}"/>')
    name = f"one period, {short(period_ms)} ms"
    out.append(f'<text class="label deadline" x="{WIDTH - RIGHT}" y="{at - 5:.1f}" text-anchor="end">{name}</text>')
    return figure(out, "seconds", "latest action, ms")


def log_axis(values: Sequence[float]) -> tuple[Any, list[str]]:
    """Height of a value on a logarithmic axis that holds all of them, and its lines."""
    kept = [max(v, FLOOR_MS) for v in values]
    low, high = math.floor(math.log10(min(kept))), math.ceil(math.log10(max(kept)) + 0.05)

    def y(value: float) -> float:
        return BASE - (math.log10(max(value, FLOOR_MS)) - low) / (high - low) * (BASE - TOP)

    return y, [tick_y(y(10.0**power), short(10.0**power)) for power in range(low, high + 1)]


def seconds_axis(seconds: float) -> list[str]:
    step = 10 ** math.floor(math.log10(max(seconds, 1e-3)))
    step = step / 2 if seconds / step < 3 else step * 2 if seconds / step > 6 else step
    places = [i * step for i in range(int(seconds / step) + 1)]
    return [tick_x(LEFT + s / seconds * (WIDTH - LEFT - RIGHT), short(s)) for s in places]


def roofline(rows: Sequence[Mapping[str, Any]], peaks: Mapping[str, float]) -> str:
    """GFLOP/s over FLOP per byte, both logarithmic; a dot a kernel, its area by its share; the roofs as measured."""
    shown = [r for r in rows if r.get("gflops") and r.get("bytes") and r.get("flops")]
    roofs = [(name, peaks[key]) for name, key in ROOFS.items() if peaks.get(key)]
    if not shown or not roofs or not peaks.get("dram_gbps"):
        return empty("not measured: profile with --kernels on this machine")
    places = [(r["flops"] / r["bytes"], r["gflops"], r["share"], r["family"]) for r in shown]
    best = max(peak for _, peak in roofs)
    ridges = [peak / peaks["dram_gbps"] for _, peak in roofs]
    x_low, x_high = decades([p[0] for p in places] + ridges)
    y_low, y_high = decades([p[1] for p in places if p[2] > 1e-3] + [best * 1.3])

    edge = WIDTH - RIGHT - 58  # the roofs' names stand beyond it

    def at_x(value: float) -> float:
        return LEFT + (math.log10(value) - x_low) / (x_high - x_low) * (edge - LEFT)

    def at_y(value: float) -> float:
        share = (math.log10(max(value, 10.0**y_low)) - y_low) / (y_high - y_low)
        return BASE - min(1.0, max(0.0, share)) * (BASE - TOP)

    out = [tick_x(at_x(10.0**p), short(10.0**p)) for p in range(x_low, x_high + 1)]
    out += [tick_y(at_y(10.0**p), short(10.0**p)) for p in range(y_low, y_high + 1)]
    names: list[float] = []  # heights of the roofs' names, which do not cover one another
    left = max(10.0**x_low, 10.0**y_low / peaks["dram_gbps"])
    for (name, peak), ridge in zip(roofs, ridges, strict=True):
        points = f"{at_x(left):.1f},{at_y(left * peaks['dram_gbps']):.1f} {at_x(ridge):.1f},{at_y(peak):.1f}"
        out.append(f'<polyline class="curve roof" points="{points} {edge},{at_y(peak):.1f}"/>')
        told = max(at_y(peak) + 4, *(y + 13 for y in names)) if names else at_y(peak) + 4
        names.append(told)
        out.append(f'<text class="label faint" x="{edge + 4}" y="{told:.1f}">{name} {short(peak)}</text>')
    for intensity, rate, share, family in sorted(places, key=lambda p: -p[2]):
        radius = max(2.0, 14 * math.sqrt(share))
        out.append(
            f"<g><title>{escape(family)}, {100 * share:.1f} %</title>"
            f'<circle class="dot part1" cx="{at_x(intensity):.1f}" cy="{at_y(rate):.1f}" r="{radius:.1f}"/></g>'
        )
    return figure(out, "operations a byte", "GFLOP/s")


ROOFS = {"int8": "int8_gops", "bf16": "bf16_gflops", "fp32": "fp32_gflops"}


def decades(values: Sequence[float]) -> tuple[int, int]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def flame(stages: Sequence[Mapping[str, Any]]) -> str:
    """A plan's time as layers: whole, stages, kernels; a width is a share of the time. Slivers keep a line."""
    whole = sum(stage["ms"] for stage in stages)
    if not whole:
        return empty("not measured: the bundle does not say what its calls do")
    line, gap, left = 42, 3, 2
    room = WIDTH - 2 * left

    def block(x: float, share: float, layer: int, name: str, ms: float, css: str) -> str:
        wide, y = max(share * room, 0.6), layer * (line + gap) + 2
        text = f"{name} {short(ms)} ms"
        made = f'<rect class="{css}" x="{left + x * room:.2f}" y="{y}" width="{wide:.2f}" height="{line}" rx="2"/>'
        letters = int((wide - 8) / 6.4)
        if letters >= 4:
            at = f'x="{left + x * room + 6:.1f}" y="{y + line / 2 + 4:.0f}"'
            made += f'<text class="label" {at}>{escape(clipped(text, letters))}</text>'
        return f"<g><title>{escape(text)}, {100 * share:.2g} %</title>{made}</g>"

    out, x = [block(0, 1, 0, "a plan", whole, "flame0")], 0.0
    for i, stage in enumerate(stages):
        share = stage["ms"] / whole
        out.append(block(x, share, 1, stage["stage"], stage["ms"], f"flame{1 + i % 2}"))
        inner = x
        for j, (kernel, ms) in enumerate(stage["kernels"].items()):
            out.append(block(inner, ms / whole, 2, kernel, ms, f"flame{3 + j % 2}"))
            inner += ms / whole
        x += share
    return f'<svg viewBox="0 0 {WIDTH} {3 * (line + gap) + 2}" role="img"><title>a plan</title>{"".join(out)}</svg>'


def estimate(found: Mapping[str, float], measured: Mapping[str, float | None]) -> str:
    """An estimate's point and interval over what was measured: the bound of the median and the largest seen."""
    told = [("p50", measured.get("p50"), "quantile"), ("max", measured.get("max"), "deadline")]
    values = [found["low"], found["high"], *(v for _, v, _ in told if v is not None)]
    low, high = min(values) / 1.15, max(values) * 1.15
    left, right = 82, 16

    def x(value: float) -> float:
        return left + math.log(value / low) / math.log(high / low) * (WIDTH - left - right)

    out = [
        f'<text class="label" x="{left - 10}" y="34" text-anchor="end">estimated</text>'
        f'<line class="curve full" x1="{x(found["low"]):.1f}" y1="30" x2="{x(found["high"]):.1f}" y2="30"/>'
        f'<circle class="end full" cx="{x(found["point"]):.1f}" cy="30" r="5"/>'
        f'<text class="label full" x="{x(found["point"]):.1f}" y="19" text-anchor="middle">'
        f"{short(found['point'])} ms</text>",
        f'<text class="label" x="{left - 10}" y="74" text-anchor="end">measured</text>',
    ]
    for name, value, css in told:
        if value is not None:
            anchor, aside = ("end", -6) if name == "max" or x(value) > WIDTH / 2 else ("start", 6)
            out.append(f'<line class="mark {css}" x1="{x(value):.1f}" y1="58" x2="{x(value):.1f}" y2="82"/>')
            out.append(
                f'<text class="label {css}" x="{x(value) + aside:.1f}" '
                f'y="{54 if name == "p50" else 96}" text-anchor="{anchor}">{name} {short(value)} ms</text>'
            )
    return f'<svg viewBox="0 0 {WIDTH} 104" role="img"><title>estimate and measurement</title>{"".join(out)}</svg>'

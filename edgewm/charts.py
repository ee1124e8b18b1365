"""Charts as SVG text and pictures as PNG text: small functions, no library, colours from the page's CSS variables."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from html import escape

import numpy as np

Array = np.ndarray

WIDTH, HEIGHT = 420, 250  # in units that are about one pixel on a phone
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 40


def png(image: Array) -> str:
    """A uint8 picture (h, w, 3) as base64 PNG (RFC 2083: one IDAT, filter 0)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = image.shape
    rows = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(image, np.uint8))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return base64.b64encode(data).decode()


def short(value: float) -> str:
    """Three digits, no trailing zeros."""
    if value == 0:
        return "0"
    size = abs(value)
    return f"{value:,.0f}" if size >= 1000 else f"{value:.3g}" if size >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")


def histogram(
    buckets: Sequence[Sequence[float]], marks: Sequence[tuple[str, float, str]], x_label: str, bars: int = 44
) -> str:
    """Counts over a logarithmic axis of ms, counts logarithmic too, so that one stall among thousands is seen.

    `buckets` are [value, count]; `marks` are (name, value, CSS class), drawn as upright lines.
    """
    shown = [(v, n) for v, n in buckets if n > 0]
    if not shown:
        return empty("nothing was measured")
    floor = 1e-3  # one microsecond: less is shown there
    values = [max(v, floor) for v, _ in shown] + [max(v, floor) for _, v, _ in marks]
    per_decade = max(4, min(64, int(bars / max(0.1, math.log10(max(values) / min(values))))))
    low = math.floor(math.log10(min(values)) * per_decade) - 1
    high = math.ceil(math.log10(max(values)) * per_decade) + 1
    counts = np.zeros(high - low)
    for value, n in shown:
        counts[min(len(counts) - 1, int(math.log10(max(value, floor)) * per_decade - low))] += n

    def x(value: float) -> float:
        return LEFT + (math.log10(max(value, floor)) * per_decade - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    top = max(1.0, math.log10(counts.max()) + 0.15)
    head = TOP + 15 * len(marks)  # one line of text for each mark

    def y(count: float) -> float:
        # half a unit below one, so that a single count still has a height
        return HEIGHT - BOTTOM - (math.log10(count) + 0.3) / (top + 0.3) * (HEIGHT - BOTTOM - head)

    out = []
    for power in range(math.floor(low / per_decade), math.ceil(high / per_decade) + 1):
        for step in (1, 2, 5) if high - low <= 2.2 * per_decade else (1,):
            at = step * 10.0**power
            if LEFT <= x(at) <= WIDTH - RIGHT and math.log10(at) * per_decade >= low:
                out.append(tick_x(x(at), short(at)))
    for power in range(int(top) + 1):
        out.append(tick_y(y(10.0**power), f"{10**power:,}"))
    wide = (WIDTH - LEFT - RIGHT) / len(counts)
    for i, count in enumerate(counts):
        if count:
            out.append(
                f'<rect class="bar" x="{LEFT + i * wide + 0.5:.1f}" y="{y(count):.1f}" '
                f'width="{max(wide - 1, 0.8):.1f}" height="{HEIGHT - BOTTOM - y(count):.1f}"/>'
            )
    for i, (name, value, css) in enumerate(marks):
        at, line = x(value), TOP + 15 * i
        anchor, shift = ("end", -5) if at > WIDTH * 0.55 else ("start", 5)
        out.append(f'<line class="mark {css}" x1="{at:.1f}" y1="{line - 4}" x2="{at:.1f}" y2="{HEIGHT - BOTTOM}"/>')
        out.append(
            f'<text class="label {css}" x="{at + shift:.1f}" y="{line + 5}" text-anchor="{anchor}">'
            f"{escape(name)} {short(value)} ms</text>"
        )
    return figure(out, x_label, "times")


def scatter(x: Sequence[float], y: Sequence[float], part: Sequence[int], x_label: str, y_label: str) -> str:
    """Two costs of the same candidates on the same scale, with the line where they agree; `part` gives the colour."""
    pairs = [(a, b, p) for a, b, p in zip(x, y, part, strict=True) if a is not None and b is not None]
    if not pairs:
        return empty("no candidate has both costs")
    both = [v for a, b, _ in pairs for v in (a, b)]
    low, high, ticks = scale(min(both), max(both))

    def at_x(v: float) -> float:
        return LEFT + (v - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def at_y(v: float) -> float:
        return HEIGHT - BOTTOM - (v - low) / (high - low) * (HEIGHT - BOTTOM - TOP)

    out = [tick_x(at_x(v), short(v)) for v in ticks] + [tick_y(at_y(v), short(v)) for v in ticks]
    out.append(
        f'<line class="even" x1="{at_x(low):.1f}" y1="{at_y(low):.1f}" x2="{at_x(high):.1f}" y2="{at_y(high):.1f}"/>'
    )
    for a, b, p in pairs:
        out.append(f'<circle class="dot part{p}" cx="{at_x(a):.1f}" cy="{at_y(b):.1f}" r="2.6"/>')
    return figure(out, x_label, y_label)


def lines(
    series: Sequence[tuple[str, Sequence[float | None], str]], x: Sequence[float], x_label: str, y_label: str
) -> str:
    """Curves (name, values, CSS class) over common places `x`, from zero, each named at its end."""
    values = [v for _, row, _ in series for v in row if v is not None]
    if not values or len(x) < 2:
        return empty("nothing was measured")
    low, high, ticks = scale(0.0, max(values))
    right = RIGHT + 70

    def at_x(v: float) -> float:
        return LEFT + (v - x[0]) / (x[-1] - x[0]) * (WIDTH - LEFT - right)

    def at_y(v: float) -> float:
        return HEIGHT - BOTTOM - (v - low) / (high - low) * (HEIGHT - BOTTOM - TOP)

    told: list[float] = []  # places with a number below them; the others have a line alone
    out = [tick_y(at_y(v), short(v)) for v in ticks]
    room = 8 + 6 * max(len(short(v)) for v in x)
    for v in x:
        is_free = all(abs(at_x(v) - other) >= room for other in told)
        out.append(tick_x(at_x(v), short(v) if is_free else ""))
        told += [at_x(v)] * is_free
    ends: list[float] = []
    for name, row, css in series:
        points = [(at_x(a), at_y(v)) for a, v in zip(x, row, strict=True) if v is not None]
        if not points:
            continue
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        out.append(f'<polyline class="curve {css}" points="{path}"/>')
        out += [f'<circle class="end {css}" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in points]
        place = points[-1][1]
        while any(abs(place - other) < 14 for other in ends):  # names do not cover one another
            place += 14
        ends.append(place)
        out.append(f'<text class="label {css}" x="{points[-1][0] + 8:.1f}" y="{place + 4:.1f}">{escape(name)}</text>')
    return figure(out, x_label, y_label)


def shares(rows: Sequence[tuple[str, float]]) -> str:
    """Horizontal bars of shares of a whole."""
    if not rows:
        return empty("not measured: profile with --kernels")
    line, left = 22, 128
    height = line * len(rows) + 8
    widest = max(v for _, v in rows)
    out = []
    for i, (name, value) in enumerate(rows):
        y = 4 + i * line
        wide = value / widest * (WIDTH - left - 60)
        out.append(
            f'<text class="label" x="{left - 8}" y="{y + 14}" text-anchor="end">{escape(clipped(name, 18))}</text>'
        )
        out.append(f'<rect class="bar" x="{left}" y="{y + 3}" width="{max(wide, 1):.1f}" height="{line - 8}" rx="2"/>')
        out.append(f'<text class="label faint" x="{left + wide + 6:.1f}" y="{y + 14}">{100 * value:.1f} %</text>')
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(out)}</svg>'


def intervals(rows: Sequence[tuple[str, float, float, float, str]]) -> str:
    """Rates between 0 and 1 with their intervals: (name, rate, low, high, CSS class)."""
    line, left = 34, 96
    height = line * len(rows) + 34

    def x(v: float) -> float:
        return left + v * (WIDTH - left - 20)

    out = []
    for v in (0.0, 0.25, 0.5, 0.75, 1.0):
        out.append(f'<line class="grid" x1="{x(v):.1f}" y1="4" x2="{x(v):.1f}" y2="{height - 26}"/>')
        out.append(f'<text class="tick" x="{x(v):.1f}" y="{height - 10}" text-anchor="middle">{100 * v:.0f} %</text>')
    for i, (name, rate, low, high, css) in enumerate(rows):
        y = 20 + i * line
        out.append(f'<text class="label {css}" x="{left - 10}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        out.append(f'<line class="curve {css}" x1="{x(low):.1f}" y1="{y}" x2="{x(high):.1f}" y2="{y}"/>')
        out.append(f'<circle class="end {css}" cx="{x(rate):.1f}" cy="{y}" r="5"/>')
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(out)}</svg>'


def dumbbells(rows: Sequence[tuple[str, float | None, float | None]], x_label: str, high: float | None = None) -> str:
    """Two values on a common axis from zero for each name: the full model's and the bundle's; None is left out."""
    known = [v for _, *pair in rows for v in pair if v is not None]
    if not known:
        return empty("nothing was measured")
    line, left = 30, 118
    height = line * len(rows) + 44
    _, top, ticks = scale(0.0, high if high is not None else max(known))

    def x(v: float) -> float:
        return left + min(max(v, 0.0), top) / top * (WIDTH - left - 20)

    out = []
    for v in ticks:
        out.append(f'<line class="grid" x1="{x(v):.1f}" y1="4" x2="{x(v):.1f}" y2="{height - 38}"/>')
        out.append(f'<text class="tick" x="{x(v):.1f}" y="{height - 22}" text-anchor="middle">{short(v)}</text>')
    for i, (name, full, compressed) in enumerate(rows):
        y = 18 + i * line
        shown = escape(clipped(name, 17))
        out.append(f'<text class="label" x="{left - 10}" y="{y + 4}" text-anchor="end">{shown}</text>')
        if full is not None and compressed is not None:
            out.append(f'<line class="axis" x1="{x(full):.1f}" y1="{y}" x2="{x(compressed):.1f}" y2="{y}"/>')
        for value, css, radius in ((full, "full", 6), (compressed, "compressed", 3.5)):
            if value is not None:
                out.append(f'<circle class="end {css}" cx="{x(value):.1f}" cy="{y}" r="{radius}"/>')
    middle = (left + WIDTH - 20) / 2
    out.append(f'<text class="tick" x="{middle}" y="{height - 5}" text-anchor="middle">{escape(x_label)}</text>')
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(out)}</svg>'


# ------------------------------------------------------------------------------------------------------------- pieces


def scale(low: float, high: float) -> tuple[float, float, list[float]]:
    """A range that holds both values, with round ticks: about five."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(m for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return first * step, last * step, [i * step for i in range(first, last + 1)]


def tick_x(x: float, text: str) -> str:
    base = HEIGHT - BOTTOM
    return (
        f'<line class="grid" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{base}"/>'
        f'<text class="tick" x="{x:.1f}" y="{base + 15}" text-anchor="middle">{text}</text>'
    )


def tick_y(y: float, text: str) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
    )


def figure(parts: Sequence[str], x_label: str, y_label: str) -> str:
    base, middle = HEIGHT - BOTTOM, (TOP + HEIGHT - BOTTOM) / 2
    frame = f'<path class="axis" d="M{LEFT} {TOP}V{base}H{WIDTH - RIGHT}"/>'
    below = f'x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 7}"'
    beside = f'transform="translate(11 {middle}) rotate(-90)"'
    names = "".join(
        f'<text class="tick" {place} text-anchor="middle">{escape(label)}</text>'
        for place, label in ((below, x_label), (beside, y_label))
    )
    title = escape(f"{y_label} over {x_label}")
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{title}</title>{"".join(parts)}{frame}{names}</svg>'


def empty(words: str) -> str:
    return f'<p class="none">{escape(words)}</p>'


def clipped(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def card(title: str, drawing: str, key: str = "") -> str:
    below = f"<figcaption>{key}</figcaption>" if key else ""
    return f"<figure><h3>{escape(title)}</h3>{drawing}{below}</figure>"

"""What `edgewm targets show` prints of a board: its modes side by side, its figures, and where each is from."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group
from rich.table import Table
from rich.text import Text

from .console import number, size, table
from .target import Mode, Target, peak_flops

FORMATS = ("fp16", "int8", "fp8", "fp4")  # of the GPU, whose peaks stand in the table of modes where it has them


def board_table(board: Target) -> Group:
    """Modes, facts, measured figures and sources of one board; every advertised peak is a dense one."""
    lines = [f"{board.title}: {', '.join((board.name, *board.aliases))}"]
    lines += [f"{name:10} {text}" for name, text in _facts(board)]
    parts = [Text("\n".join(lines)), _modes(board)]
    if board.measured:
        parts.append(_measured(board))
    parts.append(Text("\n".join(["sources", *(f"  {name}: {text}" for name, text in _sources(board))])))
    return Group(*parts)


def _facts(board: Target) -> Iterator[tuple[str, str]]:
    cpu, gpu = board.cpu, board.gpu
    caches = (("L1d", cpu.l1d_bytes), ("L2", cpu.l2_bytes), ("L3", cpu.l3_bytes))
    held = ", ".join(f"{name} {size(value)}" for name, value in caches if value)
    kernels = f"{cpu.isa} kernels ({', '.join(cpu.features)})"
    yield "CPU", f"{cpu.cores} x {cpu.name}, {kernels}" + (f"; {held}" if held else "")
    if gpu is not None:
        cache = f"; L2 {size(gpu.l2_bytes)}" if gpu.l2_bytes else ""
        yield "GPU", f"{gpu.name}, {gpu.sm}, tensor cores in {', '.join(gpu.formats)}{cache}"
    yield "memory", f"{size(board.memory.bytes)} {board.memory.kind}".strip()
    jetpack = f", JetPack {', '.join(board.software.jetpack)}" if board.software.jetpack else ""
    yield "software", f"{board.zig_triple}{jetpack}"


def _modes(board: Target) -> Table:
    formats = [f for f in FORMATS if board.gpu and getattr(board.gpu.flop_per_sm_clock, f)]
    heads = [f"{f.upper()} T/s" for f in formats]
    made = table("", "mode", "cores", "CPU MHz", "SM", "GPU MHz", "GB/s", *heads)
    for mode in board.mode:
        peaks = [_tera(peak_flops(board, mode, f, "gpu")) for f in formats]
        figures = map(_plain, (mode.cpu_cores, mode.cpu_mhz, mode.sm, mode.gpu_mhz, mode.dram_gbps))
        made.add_row(_name(board, mode), *figures, *peaks)
    return made


def _name(board: Target, mode: Mode) -> str:
    at = "" if mode.number is None else f" ({mode.number})"
    return f"{mode.name}{at}{', boots' if mode.name == board.default_mode else ''}"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _tera(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e12:.1f}"


def _measured(board: Target) -> Table:
    made = table("measured", "what", "value", "mode", "by")
    for row in board.measured:
        made.add_row(row.what, number(row.value, row.unit), row.mode or "not stated", row.source)
    return made


def _sources(board: Target) -> Iterator[tuple[str, str]]:
    yield "CPU", board.cpu.source
    if board.gpu is not None:
        yield "GPU", board.gpu.source
    yield "memory", board.memory.source
    yield "software", board.software.source
    alike: dict[str, list[str]] = {}
    for mode in board.mode:
        sure = f" ({mode.confidence})" if mode.confidence else ""
        alike.setdefault(mode.source + sure, []).append(mode.name)
    for source, names in alike.items():
        yield f"mode{'s' if len(names) > 1 else ''} {', '.join(names)}", source

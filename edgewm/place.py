"""Where a program runs: a board's processor or its GPU, as asked for or by the smaller estimate."""

from __future__ import annotations

from typing import Any

from .cuda.compile import INSTALL, check_tools
from .cuda.schedule import schedule_gpu
from .emit import schedule_program
from .errors import EdgewmError
from .estimate.counts import plan_counts
from .estimate.placed import Placement, choose, estimate_gpu, parts_of
from .estimate.verb import estimate_ms, machine_or_refusal
from .garbage import uncollected
from .passes import LOWERING, run
from .program import Program
from .quantize import recipe_of
from .quantize.price import FASTEST, Clock
from .schedule import Schedule
from .target import Mode, Target


@uncollected()
def place_program(
    program: Program, board: Target, power: Mode, place: str, threads: int
) -> tuple[Schedule, dict[str, Any] | None, Placement]:
    """The schedule for where the program will run, what its calls do where that is a CPU, and how that was chosen."""
    if place == "cpu" or not has_gpu(board):
        schedule = schedule_program(program, board.isa)
        counts = plan_counts(schedule, board.isa)
        return schedule, counts, choose("cpu", estimate_ms(counts, board, power, threads), None)
    on_gpu = schedule_gpu(program)
    gpu_ms, unknown = estimate_gpu(on_gpu, board, power)
    if place == "gpu":
        return on_gpu, None, choose(place, None, gpu_ms, unknown)
    schedule = schedule_program(program, board.isa)
    counts = plan_counts(schedule, board.isa)
    cpu_ms = estimate_ms(counts, board, power, threads)
    if cpu_ms is not None:
        parts = {name: plan_counts(part, board.isa) for name, part in parts_of(schedule).items()}
        cpu_ms["parts_ms"] = {n: estimate_ms(part, board, power, threads)["point"] for n, part in parts.items()}
    placed = choose(place, cpu_ms, gpu_ms, unknown)
    return (schedule, counts, placed) if placed.place == "cpu" else (on_gpu, None, placed)


def clock_of(program: Program, board: Target, power: Mode, place: str, threads: int) -> tuple[Clock, str]:
    """What formats of the exact program are chosen by, and why: of a place that nobody names, where a plan in the
    fastest of them is sooner. EdgewmError where nothing is known of how fast that is."""
    why = f"asked for: --place {place}"
    if place == "auto":
        recipe = recipe_of(program, FASTEST)
        planned = program.with_(entries={"plan": program.entries["plan"]}, recipe=recipe, target=board)
        _, _, placed = place_program(run(planned, LOWERING), board, power, place, threads)
        place, why = placed.place, f"in {FASTEST} {placed.why}" if has_gpu(board) else "it has no GPU"
    machine = None if place == "gpu" else machine_or_refusal(board, power, threads, None)
    return Clock(board, power, threads, machine), f"formats are chosen by times on the {place.upper()}: {why}"


def has_gpu(board: Target) -> bool:
    """Whether kernels can be compiled for a GPU of the board."""
    return board.gpu is not None and board.gpu.toolkit != ""


def check_place(board: Target, place: str) -> None:
    """EdgewmError where a GPU is asked for that no kernels can be compiled for."""
    if place == "gpu" and not has_gpu(board):
        raise EdgewmError(
            f"{board.name} has no GPU that kernels can be compiled for", f"--place gpu for {board.name}",
            "use --place cpu or auto, or a board with one: --target orin",
        )  # fmt: skip


def check_gpu_tools(board: Target, place: str) -> None:
    """EdgewmError, with both ways on, where what compiles for the board's GPU is not installed."""
    try:
        check_tools(board.gpu.toolkit)
    except EdgewmError as fault:
        raise EdgewmError(fault.what, f"--place {place} for {board.name}", f"{INSTALL}, or give --place cpu") from fault

"""The command line: one function a verb, one error boundary.

Exit status: 0 done; 1 a gate or a needed check failed; 2 could not run (three lines on stderr: what, where, fix) or not
enough evidence; 130 interrupted; 70 a fault of edgewm's own (with its trace). Nothing heavier than click is imported
until a verb needs it.
"""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from .cli_options import (
    COUNT,
    DEVICE,
    PATH,
    PLANNER,
    TRAINING,
    Listed,
    Rate,
    check_cpus,
    check_distill,
    check_precision,
    check_slo,
    distill_options,
    planner_options,
)
from .cli_verb import verb
from .errors import EdgewmError
from .options import BACKENDS, NATIVE, PLACES, PRESETS, SUITES

LOADS = ("cpu", "memory", "disk", "gpu")
OWN_FAULT = 70  # EX_SOFTWARE of sysexits.h
STATUS = {True: 0, False: 1, None: 2}  # of a verdict; None: not enough evidence

# ------------------------------------------------------------------------------------------------------- the verbs


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="edgewm")
def cli() -> None:
    """Turn a trained latent world model into a planner that acts at a fixed rate on a robot's own board.

    \b
    Ten minutes, with the model that ships with edgewm:
      edgewm build reference --target host       a bundle for this machine, in out/
      edgewm profile out                         how late can an action be?
      edgewm validate out --against reference    does it still choose what the full model would?
      edgewm run out --episodes 3 --gif run.gif  watch it act
      edgewm build reference --target orin       the same for a Jetson AGX Orin
    """


@verb(cli, seed=True)
@click.argument("model")
@click.option("--target", default="host", show_default=True, help="Board, by any name of `edgewm targets`.")
@click.option("--mode", help="Power mode of the board.  [default: as it boots]")
@click.option("--rate-hz", type=Rate(), help="Control rate.  [default: the model's own]")
@click.option("--precision", callback=check_precision, default="fp32", show_default=True,
              metavar="fp32|bf16[_all]|fp16[_all]|w8a8[_all]|w8a8_smooth|w8a8_static|w8a16|fp8|w4a8|w4a16_g64|auto|FILE",
              help="fp32 is exact; bf16, fp16 (for GPUs) and w8a8 hold weights and activations in that, with _all the "
              "encoder's too; fp8 likewise, but saves no time; w8a8_smooth (even channels), w8a8_static (constant "
              "steps) and w4 (g: 32, 64 or 128 inputs share a step) choose steps and weights by planning; +hidden, "
              "+attention, +latents hold values between calls in bf16, too; auto chooses for each product what "
              "plans best and still holds --rate-hz; FILE is a recipe.")  # fmt: skip
@click.option("--calibration", type=PATH,
              help="Recorded data for w8a8_smooth, _static, w4 and auto, as of validate --data.")  # fmt: skip
@planner_options
@click.option("--heads", type=Listed(), help="Decoders to keep, with commas.  [default: none]")
@click.option("--place", type=click.Choice(PLACES), default="auto", show_default=True,
              help="What plans; auto takes the smaller estimate.")  # fmt: skip
@click.option("--threads", type=COUNT, help="Threads that plan.  [default: the mode's cores]")
@click.option("--isa", help="Build for less than the CPU has: avx2 or scalar on an avx512 machine.")
@click.option("--backend", type=click.Choice(BACKENDS), default=NATIVE, show_default=True,
              help="What runs it: our own kernels, or the program as ONNX files by another runtime, in fp32 or w8a8 "
              "(constant steps, calibrated); tensorrt builds its engines on the device.")  # fmt: skip
@click.option("--student", default="none", show_default=True, metavar="none|auto|DIRECTORY",
              help="Build a student in its place; auto distils one for --rate-hz plans a second.")  # fmt: skip
@click.option("-o", "--out", type=PATH, default=Path("out"), show_default=True, help="Where the bundle goes.")
@click.option("--dry-run", is_flag=True, help="Say what would be built and estimate its time; write nothing.")
def build(model: str, student: str, **options: Any) -> tuple[dict, Any, int]:
    """Compile a model for a board.

    The bundle needs nothing but libc where it runs.

    MODEL is a checkpoint directory or file of a known family, module:function for your own torch.nn.Module, or
    `reference`, the trained model that ships with edgewm.

    Exit status with --student auto, which is built all the same: 1 a gate of the judge failed, 2 not enough evidence.
    """
    from .console import build_table, progress_bar
    from .target import resolve

    resolve(options["target"], options["mode"], options["isa"])  # refuse before anything heavy is imported
    from .build import build as compile_bundle
    from .student import student_for

    planner, verdict = {field: options.pop(field) for field in PLANNER}, None
    with progress_bar() as progress:
        if student != "none":
            told = student_for(model, student, planner, options, progress, lambda text: click.echo(text, err=True))
            model, planner, options["precision"], verdict = told
        result = compile_bundle(model, planner=planner, progress=progress, **options)
    if verdict is None:
        return result, build_table(result), 0
    result = {**result, "student": {"model": model, "verdict": verdict}}
    return result, build_table(result), STATUS[verdict["passed"]]


@verb(cli, seed=True)
@click.argument("model")
@planner_options
@distill_options
def distill(model: str, **options: Any) -> tuple[dict, Any, int]:
    """Find and train what plans at a rate.

    The model itself, in the precision that rounds least, with fewer candidates, or with fewer still from a proposal, a
    small network that is trained for it; else the largest student whose plan takes at most a period on the target. OUT
    is then a MODEL for `edgewm build`; where nothing had to be trained, it says how MODEL is built.

    With --proposal-only it trains that small network alone.
    """
    from .console import distill_table, progress_bar, proposal_line
    from .distill import distill as distilled
    from .distill import distill_proposal
    from .distill.processes import Processes

    is_proposal = options.pop("proposal_only")
    check_distill(is_proposal)
    training = {field: given for field in TRAINING if (given := options.pop(field)) is not None}
    if is_proposal:
        kept = {name: options[name] for name in ("out", "data", "cache", "seed", "device")}
        with progress_bar() as progress:
            result = distill_proposal(model, training=training, progress=progress, **kept)
        return result, proposal_line(result), 0
    training |= {"mixed": True} if options.pop("mixed") else {}
    if (terms := options.pop("losses")) is not None:
        options["terms"] = terms
    options |= {"planner": {field: options.pop(field) for field in PLANNER}, "training": training}
    with progress_bar() as progress:
        result = distilled(model, progress=progress, notice=lambda text: click.echo(text, err=True), **options)
    if not Processes.here().is_first:  # of several, one tells
        return None, None, 0
    status = STATUS[result["verdict"]["passed"]] if result["verdict"] else 0
    return result, distill_table(result), status


@verb(cli)
@click.argument("bundle", type=PATH)
@click.option("--rate-hz", type=Rate(), help="Control rate.  [default: the bundle's own]")
@click.option("--ticks", type=COUNT, default=3000, show_default=True, help="Control periods to run.")
@click.option("--minutes", type=float, help="How long to run, instead of --ticks.")
@click.option("--threads", type=COUNT, help="Threads that plan.  [default: the bundle's own]")
@DEVICE
@click.option("--pin", callback=check_cpus, metavar="CPU[,CPU]", help="Ask for these CPUs, say those of isolcpus.")
@click.option("--fifo", type=click.IntRange(2, 99), metavar="PRIORITY", help="Ask for SCHED_FIFO; plans run one below.")
@click.option("--mlock", is_flag=True, help="Ask that no page is ever swapped out.")
@click.option("--load", type=click.Choice(LOADS), help="Also measure while other work uses this.")
@click.option("--kernels", is_flag=True, help="Time each kernel, too.")
@click.option("--slo", callback=check_slo, metavar="p99=20ms",
              help="Exit with 1 where a plan takes longer, 2 where the run is too short to tell.")  # fmt: skip
@click.option("--miss", type=click.FloatRange(1e-6, 0.5), default=0.01, show_default=True, metavar="SHARE",
              help="Late plans that the highest rate may have.")  # fmt: skip
@click.option("--compare", "against", type=PATH, metavar="FILE", help="An earlier --json: what differs, how surely.")
@click.option("--prometheus", type=PATH, metavar="FILE", help="Write the figures there for a fleet's collector.")
def profile(bundle: Path, **options: Any) -> tuple[dict, Any, int]:
    """How late can an action be?

    Run BUNDLE at its control rate and count from each intended release, so that one stall counts for all it delays.
    With --device ssh://user@host it is copied there, must give its recorded answers bit for bit, is timed and removed.

    Exit status: 0 the run ended, and --slo was met; 1 it was not; 2 it could not run, or was too short to tell.
    """
    from .console import profile_table, progress_bar
    from .profile import profile as measure

    with progress_bar() as progress:
        result = measure(bundle, progress=progress, **options)
    met = True if options["slo"] is None else result["slo_met"]
    return result, profile_table(result), STATUS[met]


@verb(cli, seed=True)
@click.argument("bundle", type=PATH)
@click.option("--against", required=True, metavar="MODEL", help="The full model it was built from.")
@click.option("--suite", type=Listed(*SUITES), metavar="LIST",
              help=f"Of {', '.join(SUITES)}.  [default: all that there is evidence for, but closed-loop]")
@click.option("--preset", default="default", show_default=True, metavar=f"{'|'.join(PRESETS)}|FILE",
              help="How far each gate may go; FILE is JSON, a base and one's own limits.")
@click.option("--episodes", type=COUNT, help="Pairs in closed loop, at most.  [default: enough to decide]")
@click.option("--contexts", type=COUNT, help="Observations planned from.  [default: what the preset's claim takes]")
@click.option("--data", type=PATH, metavar="PATH[#CAMERA]",
              help="Recorded episodes (npz, HDF5, LeRobot), or arrays for this model, safetensors.  "
                   "[default: those of the model]")  # fmt: skip
@click.option("--env", help="Simulator: reference or module:function.  [default: the model's own]")
@click.option("--latency", type=Listed(), default="", metavar="measured|estimated|FILE|MS[,...]",
              help="Also act with plans that come so late: success against latency.")
@click.option("--threads", type=COUNT, default=1, show_default=True, help="Threads that plan.")
def validate(bundle: Path, **options: Any) -> tuple[dict, Any, int]:
    """Does it plan as the full model does?

    Compare BUNDLE with the model it was built from, on the same noise.

    Exit status: 0 every gate passed; 1 one failed; 2 it could not run, or there was not enough evidence.
    """
    from .console import progress_bar, validate_table
    from .validate import validate as judge

    with progress_bar() as progress:
        result = judge(bundle, progress=progress, notice=lambda text: click.echo(text, err=True), **options)
    return result, validate_table(result), STATUS[result["passed"]]


@verb(cli, seed=True)
@click.argument("bundle", type=PATH)
@click.option("--env", default="reference", show_default=True, help="Simulator: reference or module:function.")
@click.option("--episodes", type=COUNT, default=3, show_default=True, help="How many.")
@click.option("--gif", type=PATH, help="Record them here.")
@click.option("--threads", type=COUNT, default=1, show_default=True, help="Threads that plan.")
def run(bundle: Path, **options: Any) -> tuple[dict, Any, int]:
    """Let a bundle act in a simulator."""
    from .act import run as act
    from .console import progress_bar, run_table

    with progress_bar() as progress:
        result = act(bundle, progress=progress, **options)
    return result, run_table(result), 0


@verb(cli)
@click.argument("path", metavar="PATH|MODEL")
@click.option("--stage", help="Print the program as it was after this step.")
@click.option("--kernels", is_flag=True, help="Print the kernel calls and their costs.")
def show(path: str, **options: Any) -> tuple[dict, Any, int]:
    """Print a bundle (PATH) or the program of a MODEL.

    What it computes, what each step of the compiler changed, and which kernels run.
    """
    from .show import show as text_of

    text = text_of(path, **options)
    return {"text": text}, text, 0


@cli.group(invoke_without_command=True)
@click.pass_context
def targets(ctx: click.Context) -> None:
    """Boards and their power modes."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(listed)


@verb(targets)
def _list() -> tuple[dict, Any, int]:
    """Every board, as it boots."""
    from .console import number, table
    from .target import resolve
    from .target import targets as known

    shown = table("", "target", "or", "CPU", "SM", "GPU MHz", "GB/s", "boots in")
    rows = []
    for board in (resolve("host")[0], *known().values()):
        mode = board.mode_named(None)
        cpu = f"{number(mode.cpu_cores)}x {board.isa}"
        figures = map(number, (mode.sm, mode.gpu_mhz, mode.dram_gbps))
        shown.add_row(board.name, next(iter(board.aliases), ""), cpu, *figures, mode.name)
        names = {"name": board.name, "aliases": list(board.aliases), "modes": [m.name for m in board.mode]}
        rows.append({**names, "isa": board.isa, "default_mode": mode.name})
    return {"targets": rows}, shown, 0


listed = _list


@verb(targets, seed=False)
@click.argument("name")
@click.option("--toml", is_flag=True, help="Print it as a file of targets/: a start for a board of your own.")
def _show(name: str, toml: bool) -> tuple[dict, Any, int]:
    """One board: every figure with its source."""
    from .boards import board_table
    from .estimate.machine import with_measured
    from .target import resolve, to_dict, to_toml

    try:
        board = with_measured(resolve(name)[0])
    except EdgewmError as fault:
        raise EdgewmError(fault.what, "NAME of `edgewm targets show`", fault.fix) from fault
    return {"target": to_dict(board)}, to_toml(board) if toml else board_table(board), 0


@verb(targets)
@DEVICE
@click.option("--target", help="Board that a device is, by any name of `edgewm targets`; host: one like this.")
@click.option("--mode", help="Power mode that it is in.  [default: the one it says]")
@click.option("--isa", help="Measure less than the CPU has: avx2 or scalar on an avx512 machine.")
@click.option("--threads", type=COUNT, help="Threads to try together.  [default: the cores a process may use there]")
@click.option("-o", "--out", type=PATH, help="Where the facts go.  [default: where estimates look for this board's]")
def probe(out: Path | None, **options: Any) -> tuple[dict, Any, int]:
    """Measure a machine: peaks, bandwidth, what each part of a kernel costs, how fast threads meet and wake.

    Where there is an NVIDIA driver also its GPU: launches, graph nodes, barriers, memory, peaks. Takes a minute; a
    device needs no Python. `edgewm estimate` and `edgewm targets show` read what is kept. Facts that
    went elsewhere (--out FILE) are given to `edgewm estimate --target BOARD --measured FILE`.
    """
    from .console import progress_bar
    from .estimate.probe import keep
    from .estimate.probe import probe as measure
    from .estimate.table import probe_table

    with progress_bar() as progress:
        facts = measure(progress=progress, **options)
    return {**facts, "file": str(keep(facts, out))}, probe_table(facts), 0


@verb(cli)
@click.argument("subject", metavar="BUNDLE|MODEL|FILE.onnx|shape:NAME")
@click.option("--target", help="Board, by any name of `edgewm targets`.  [default: the bundle's own, or host]")
@click.option("--mode", help="Power mode of the board.  [default: as it boots]")
@click.option("--precision", help="A model's, as of build; a network's fp32, fp16, bf16, int8, fp8, fp4 or int4.  "
              "[default: the bundle's own, fp32, fp16]")  # fmt: skip
@click.option("--runtime", type=click.Choice(("fused", "graph")), default="fused", show_default=True,
              help="Of a network: kernels fused, or a framework's own, replayed as a graph.")  # fmt: skip
@planner_options
@click.option("--threads", type=COUNT, help="Threads that plan.  [default: the bundle's own, or the mode's cores]")
@click.option("--place", type=click.Choice(("cpu", "gpu")), help="Where a MODEL's plan runs.  [default: cpu]")
@click.option("--isa", help="Estimate for less than the CPU has: avx2 or scalar on an avx512 machine.")
@click.option("--measured", type=PATH, help="Facts that `targets probe --out` wrote on such a machine.")
@click.option("--anyway", is_flag=True, help="Also what lies outside of what is known; the result says that it does.")
def estimate(subject: str, **options: Any) -> tuple[dict, Any, int]:
    """How long would it take on a board that is not here?

    A plan of a MODEL from its schedule, on a CPU or a GPU, or of a BUNDLE where it was built to run; one run of a
    network, from an ONNX file or of public sizes (shape:vit-b-16, shape:bert-large,batch=4,
    shape:product,m=197,n=768,k=768; shape:? names all), on a board's GPU.
    """
    from .console import progress_bar
    from .estimate.shapes import names
    from .estimate.table import estimate_table
    from .estimate.verb import estimate as estimated

    if subject == "shape:?":
        return {"shapes": list(names())}, "\n".join(f"shape:{name}" for name in names()), 0
    planner = {field: options.pop(field) for field in PLANNER}
    with progress_bar() as progress:
        result = estimated(subject, planner=planner, progress=progress, **options)
    return result, estimate_table(result), 0


@verb(cli)
@DEVICE
@click.option("--skip", multiple=True, metavar="ID", help="Leave this check out; may be repeated.")
def doctor(skip: Sequence[str], device: str) -> tuple[dict, Any, int]:
    """What this machine or a device lacks, and what mends it.

    Exit status 1: something needed is lacking.
    """
    from dataclasses import asdict

    from .doctor import examine

    checks = examine(skip, device)
    lines = []
    for check in checks:
        lines.append(f"{check.state:8} {check.id:13} {check.found}")
        if check.state != "ok":
            lines.append(f"{'':22} {check.fix}")
    broken = any(check.needed and check.state == "lacking" for check in checks)
    return {"device": device, "checks": [asdict(check) for check in checks]}, "\n".join(lines), int(broken)


@verb(cli, seed=True)
@click.option("-o", "--out", type=PATH, default=Path("out/demo"), show_default=True, help="Where everything goes.")
def demo(out: Path, seed: int) -> tuple[dict, Any, int]:
    """The whole road with the reference model.

    Build for this machine and for Orin, profile, validate, act; one table, a report and a GIF.
    """
    from .console import progress_bar
    from .demo import demo as whole_road
    from .demo import demo_table

    with progress_bar() as progress:
        result = whole_road(out, seed=seed, progress=progress)
    return result, demo_table(result), STATUS[result["passed"]]


# ------------------------------------------------------------------------------------------------- the error boundary


def _as_error(fault: click.ClickException) -> EdgewmError:
    """A fault of usage in the same three lines as every other."""
    ctx = getattr(fault, "ctx", None)
    where = ctx.command_path if ctx is not None else "edgewm"
    return EdgewmError(fault.format_message(), where, f"`{where} --help` lists what it takes")


def execute(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status; faults are told on stderr."""
    try:
        return cli.main(list(arguments), prog_name="edgewm", standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as fault:
        click.echo(fault.format_message(), err=True)
        return 2
    except click.ClickException as fault:
        click.echo(_as_error(fault), err=True)
        return 2
    except EdgewmError as fault:
        click.echo(fault, err=True)
        return 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return 130
    except Exception as fault:
        traceback.print_exc()
        # `passes.run` leaves the last good program in a file and its path on the exception.
        saved = getattr(fault, "last_program", None)
        kept = f"; the last good program: {saved}" if saved else ""
        click.echo(f"this is a fault of edgewm itself{kept}", err=True)
        return OWN_FAULT


def main() -> None:
    status = execute(sys.argv[1:])
    gc.freeze()  # the system takes all memory at once: no cycle in it need be found before
    sys.exit(status)

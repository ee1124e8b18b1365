"""The command line: one function a verb, one error boundary.

Exit status: 0 done; 1 a gate or a needed check failed; 2 could not run (three lines on stderr: what, where, fix) or not
enough evidence; 130 interrupted; 70 a fault of edgewm's own (with its trace). Nothing heavier than click is imported
until a verb needs it.
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from .errors import EdgewmError
from .options import SLO, SUITES

SCHEMA_VERSION = 1
PRECISIONS = ("fp32", "w8a8")
PLACES = ("auto", "cpu")
LOADS = ("cpu", "memory")
OWN_FAULT = 70  # EX_SOFTWARE of sysexits.h

PATH = click.Path(path_type=Path)
COUNT = click.IntRange(min=1)


class Rate(click.FloatRange):
    """Hertz, in the runner's own range; click alone lets nan through, which no comparison holds back."""

    def __init__(self) -> None:
        super().__init__(min=1e-3, max=1e6)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = super().convert(value, param, ctx)
        return found if found == found else self.fail("nan is no rate.", param, ctx)


class Listed(click.ParamType):
    """Words separated by commas, each one of `allowed` (any word where that is empty)."""

    name = "list"

    def __init__(self, *allowed: str):
        self.allowed = allowed

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        words = value if isinstance(value, list) else [word.strip() for word in value.split(",") if word.strip()]
        for word in words:
            if self.allowed and word not in self.allowed:
                self.fail(f"{word!r} is not one of {', '.join(map(repr, self.allowed))}.", param, ctx)
        return words


def _slo(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not SLO.fullmatch(value):
        raise click.BadParameter(f"{value!r} is not like 'p99=20ms' (p50, p99, p99.9 or max; us, ms or s).")
    return value


def _device(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if value != "local":
        raise click.BadParameter(
            f"{value!r} is not 'local': only this machine is timed. On another one run the bundle's own edgewm-tick."
        )
    return value


def _precision(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if value not in PRECISIONS and not Path(value).is_file():
        raise click.BadParameter(f"{value!r} is not one of {', '.join(map(repr, PRECISIONS))}, nor a recipe's file.")
    return value


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


def verb(group: click.Group, *, seed: bool = False) -> Callable[[Callable[..., Any]], click.Command]:
    """Register a function as a verb with `--json FILE` (and `--seed`); it returns its result and what to print."""

    def register(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def command(json_file: Path | None, **options: Any) -> int:
            if json_file is not None:
                _check_writable(json_file)  # a verb may take minutes
            # With JSON on stdout nothing else goes there.
            result, shown, status = function(**options)
            _print(shown, to_stderr=str(json_file) == "-")
            if json_file is not None:
                _write_json(json_file, result)
            return status

        help = "Also write the result as JSON to this file; - is stdout, and then only that."
        made = click.option("--json", "json_file", type=PATH, metavar="FILE", help=help)(command)
        if seed:
            draws = "Of everything drawn at random."
            made = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help=draws)(made)
        return group.command(name=function.__name__.strip("_").replace("_", "-"))(made)

    return register


def _print(shown: Any, to_stderr: bool) -> None:
    if isinstance(shown, str):
        click.echo(shown, err=to_stderr)
    elif shown is not None:
        from rich.console import Console

        Console(stderr=to_stderr).print(shown)


def _check_writable(file: Path) -> None:
    """EdgewmError where JSON cannot go; makes nothing."""
    try:
        if str(file) == "-":
            return
        if file.exists():
            file.open("ab").close()
        else:
            tempfile.TemporaryFile(dir=next(p for p in file.absolute().parents if p.exists())).close()
    except OSError as fault:
        raise _no_json(file, fault) from fault


def _no_json(file: Path, fault: OSError) -> EdgewmError:
    return EdgewmError(f"cannot write JSON: {fault.strerror}", str(file), "give --json a writable file")


def _write_json(file: Path, result: Mapping[str, Any]) -> None:
    text = json.dumps({"schema_version": SCHEMA_VERSION, **result}, indent=2, allow_nan=False) + "\n"
    if str(file) == "-":
        click.echo(text, nl=False)
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    except OSError as fault:
        raise _no_json(file, fault) from fault


@verb(cli, seed=True)
@click.argument("model")
@click.option("--target", default="host", show_default=True, help="Board, by any name of `edgewm targets`.")
@click.option("--mode", help="Power mode of the board.  [default: as it boots]")
@click.option("--rate-hz", type=Rate(), help="Control rate.  [default: the model's own]")
@click.option("--precision", callback=_precision, default="fp32", show_default=True, metavar="fp32|w8a8|FILE",
              help="fp32 is exact; w8a8 holds weights and activations in int8; FILE is a JSON recipe.")  # fmt: skip
@click.option("--samples", type=COUNT, help="Candidates an iteration.  [default: the model's own]")
@click.option("--iterations", type=COUNT, help="Refits of a plan.  [default: the model's own]")
@click.option("--elites", type=COUNT, help="Candidates a refit keeps.  [default: the model's own]")
@click.option("--horizon", type=COUNT, help="Model actions a candidate.  [default: the model's own]")
@click.option("--commit-steps", type=COUNT, help="Control periods played of a plan.  [default: the model's own]")
@click.option("--heads", type=Listed(), help="Decoders to keep, with commas.  [default: none]")
@click.option("--place", type=click.Choice(PLACES), default="auto", show_default=True, help="Which unit plans.")
@click.option("--threads", type=COUNT, help="Threads that plan.  [default: the mode's cores]")
@click.option("--isa", help="Build for less than the CPU has: avx2 or scalar on an avx512 machine.")
@click.option("-o", "--out", type=PATH, default=Path("out"), show_default=True, help="Where the bundle goes.")
@click.option("--dry-run", is_flag=True, help="Say what would be built and estimate its time; write nothing.")
def build(
    model: str, samples: int | None, iterations: int | None, elites: int | None, horizon: int | None,
    commit_steps: int | None, **options: Any,
) -> tuple[dict, Any, int]:  # fmt: skip
    """Compile a model for a board.

    The bundle needs nothing but libc where it runs.

    MODEL is a checkpoint directory or file of a known family, module:function for your own torch.nn.Module, or
    `reference`, the trained model that ships with edgewm.
    """
    from .console import build_table, progress_bar
    from .target import resolve

    resolve(options["target"], options["mode"], options["isa"])  # refuse before anything heavy is imported
    from .build import build as compile_bundle

    search = {"samples": samples, "iterations": iterations, "elites": elites, "horizon": horizon}
    with progress_bar() as progress:
        result = compile_bundle(
            model, planner={**search, "commit_steps": commit_steps}, progress=progress, **options
        )
    return result, build_table(result), 0


@verb(cli)
@click.argument("bundle", type=PATH)
@click.option("--rate-hz", type=Rate(), help="Control rate.  [default: the bundle's own]")
@click.option("--ticks", type=COUNT, default=3000, show_default=True, help="Control periods to run.")
@click.option("--threads", type=COUNT, help="Threads that plan.  [default: the bundle's own]")
@click.option("--device", default="local", show_default=True, callback=_device, help="Only local: this machine.")
@click.option("--load", type=click.Choice(LOADS), help="Also measure while other work uses this.")
@click.option("--kernels", is_flag=True, help="Time each kernel, too.")
@click.option("--slo", callback=_slo, metavar="p99=20ms", help="Exit with 1 where a plan takes longer, 2 if undecided.")
def profile(bundle: Path, **options: Any) -> tuple[dict, Any, int]:
    """How late can an action be?

    Run BUNDLE at its control rate and count from each intended release, so that one stall counts for all it delays.
    """
    from .console import profile_table, progress_bar
    from .profile import profile as measure

    with progress_bar() as progress:
        result = measure(bundle, progress=progress, **options)
    met = True if options["slo"] is None else result["slo_met"]
    return result, profile_table(result), {True: 0, False: 1, None: 2}[met]


@verb(cli, seed=True)
@click.argument("bundle", type=PATH)
@click.option("--against", required=True, metavar="MODEL", help="The full model it was built from.")
@click.option("--suite", type=Listed(*SUITES), default="plan", show_default=True, help=f"Of {', '.join(SUITES)}.")
@click.option("--episodes", type=COUNT, help="Of the closed loop, at most.  [default: until decided]")
@click.option("--contexts", type=COUNT, help="Observations planned from.  [default: the suite's]")
@click.option("--data", type=PATH, help="Recorded observations, safetensors.  [default: those of the model]")
@click.option("--env", help="Simulator: reference or module:function.  [default: the model's own]")
@click.option("--threads", type=COUNT, default=1, show_default=True, help="Threads that plan.")
def validate(bundle: Path, **options: Any) -> tuple[dict, Any, int]:
    """Does it plan as the full model does?

    Compare BUNDLE with the model it was built from, on the same noise.

    Exit status: 0 every gate passed; 1 one failed; 2 it could not run, or there was not enough evidence.
    """
    from .console import progress_bar, validate_table
    from .validate import validate as judge

    with progress_bar() as progress:
        result = judge(bundle, progress=progress, **options)
    return result, validate_table(result), {True: 0, False: 1, None: 2}[result["passed"]]


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
def _show(name: str) -> tuple[dict, Any, int]:
    """One board: every figure with its source."""
    from .target import resolve, to_dict, to_toml

    try:
        board, _ = resolve(name)
    except EdgewmError as fault:
        raise EdgewmError(fault.what, "NAME of `edgewm targets show`", fault.fix) from fault
    return {"target": to_dict(board)}, to_toml(board), 0


@verb(targets)
def probe() -> tuple[dict, Any, int]:
    """This machine as a file of targets/: a start for your own board."""
    from .target import resolve, to_dict, to_toml

    board, _ = resolve("host")
    return {"target": to_dict(board)}, to_toml(board), 0


@verb(cli)
@click.option("--skip", multiple=True, metavar="ID", help="Leave this check out; may be repeated.")
def doctor(skip: Sequence[str]) -> tuple[dict, Any, int]:
    """What this machine lacks, and what mends it.

    Exit status 1: something needed is lacking.
    """
    from dataclasses import asdict

    from .doctor import examine

    checks = examine(skip)
    lines = []
    for check in checks:
        lines.append(f"{check.state:8} {check.id:13} {check.found}")
        if check.state != "ok":
            lines.append(f"{'':22} {check.fix}")
    broken = any(check.needed and check.state == "lacking" for check in checks)
    return {"checks": [asdict(check) for check in checks]}, "\n".join(lines), int(broken)


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
    return result, demo_table(result), {True: 0, False: 1, None: 2}[result["passed"]]


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
    sys.exit(execute(sys.argv[1:]))

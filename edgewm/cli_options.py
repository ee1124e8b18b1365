"""Options that verbs share: types of values, checks of words, the planner's settings."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from .errors import EdgewmError
from .options import AUTO, PLACES, RECIPES, SLO, TRAINED, is_named

PATH = click.Path(path_type=Path)
COUNT = click.IntRange(min=1)
CPUS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


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


# field of program.Planner -> its flags; what it takes: words, a number's type, or the least whole number; help
PLANNER: dict[str, tuple[str, tuple[str, ...] | type | int, str]] = {
    "kind": ("--planner", ("cem", "icem", "mppi"), "How candidates are searched."),
    "samples": ("--samples", 1, "Candidates an iteration."),
    "iterations": ("--iterations", 1, "Refits of a plan."),
    "elites": ("--elites --topk", 1, "Cheapest candidates: what the next iteration is drawn around."),
    "horizon": ("--horizon", 1, "Model actions a candidate."),
    "commit_steps": ("--commit-steps", 1, "Control periods played of a plan."),
    "history": ("--history", 1, "Frames of context, one model action apart."),
    "roll_committed": (
        "--roll-committed/--no-roll-committed", bool,
        "Plan while the last plan is played, from where its committed steps end.",
    ),
    "warm_start": ("--warm-start/--no-warm-start", bool, "Start from what the last plan left to play."),
    "proposal": ("--proposal/--no-proposal", bool, "Begin the search at the plan that the model proposes."),
    "objective": ("--objective", ("final", "path"), "Cost of the last imagined latent, or mean of all."),
    "var_scale": ("--var-scale", float, "Standard deviation of the first candidates."),
    "noise_beta": ("--noise-beta", float, "icem: noise falls with frequency f as f^(-beta/2); 0 is white."),
    "alpha": ("--alpha", float, "icem: share of the last mean and deviation that a refit keeps."),
    "n_elite_keep": ("--n-elite-keep", 0, "icem: elites that are candidates again."),
    "return_mean": ("--return-mean/--return-best", bool, "icem: the plan is the mean, or the best candidate."),
    "temperature": ("--temperature", float, "mppi: elites weigh exp(-cost / temperature)."),
}  # fmt: skip


def planner_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The planner's settings as options, under the names of the fields; None where not given."""
    for field, (flags, takes, help) in reversed(PLANNER.items()):
        kinds = {tuple: click.Choice, int: lambda least: click.IntRange(min=least), type: lambda kind: kind}
        kind = kinds[type(takes)](takes)
        text = f"{help}  [default: the model's own]"
        command = click.option(*flags.split(), field, type=kind, default=None, help=text)(command)
    return command


# field of distill.train.Settings -> what it takes; help
TRAINING: dict[str, tuple[click.ParamType, str]] = {
    "steps": (COUNT, "Of training.  [default: 4000; of a proposal 400]"),
    "learning_rate": (
        click.FLOAT, "At first; at the end a hundredth of it.  [default: 0.003; 0.0005 from its teacher's layers; of a "
        "proposal 0.001 throughout]",
    ),
    "frames": (COUNT, "Pictures that the teacher encodes.  [default: 8192]"),
    "contexts": (COUNT, "Contexts that the teacher's planner searches.  [default: 256, for a proposal 512]"),
    "round_contexts": (COUNT, "New ones for the student's planner, each round.  [default: 64]"),
}


DISTILL: dict[str, dict[str, Any]] = {
    "--rate-hz": {"type": Rate(), "help": "How many plans a second it is to make."},
    "--proposal-only": {
        "is_flag": True, "help": "Choose nothing: train where a search of MODEL begins; OUT is MODEL with that.",
    },
    "--target": {"default": "host", "show_default": True, "help": "Board, by any name of `edgewm targets`."},
    "--mode": {"help": "Power mode of the board.  [default: as it boots]"},
    "--precision": {
        "type": click.Choice((AUTO, *TRAINED)), "default": AUTO, "show_default": True,
        "help": "Of the student's bundle; it is trained with its products rounded so. auto: the largest student first, "
        "and in fp32 before bf16 before w8a8. Those of 4 bits save no time: for fidelity alone.",
    },
    "--threads": {"type": COUNT, "help": "Threads that plan.  [default: the mode's cores]"},
    "--place": {
        "type": click.Choice(PLACES), "default": AUTO, "show_default": True,
        "help": "What plans; auto takes of each candidate the smaller estimate.",
    },
    "--measured": {"type": PATH, "help": "Facts that `targets probe --out` wrote on such a machine."},
    "--data": {
        "type": PATH, "metavar": "PATH[#CAMERA]",
        "help": "Recorded episodes (npz, HDF5, LeRobot) or arrays, as of validate.  [default: the model's own]",
    },
    "--cache": {"type": PATH, "help": "Where the teacher's answers are kept.  [default: in OUT]"},
    "--cache-mib": {"type": COUNT, "default": 2048, "show_default": True, "help": "What they may take."},
    "--losses": {
        "type": Listed(), "metavar": "LOSS[,...]", "help": "Of encode, latent, counterfactual, cost, rank, elite, "
        "probe and features, those that teach it.  [default: the first three: features adds little, others nothing]",
    },
    "--episodes": {
        "type": COUNT, "help": "Pairs of episodes, at most, that the judge plays.  [default: none]",
    },
    "--judged": {"type": COUNT, "help": "Contexts of the judge.  [default: what the preset's claim takes]"},
    "--trials": {
        "type": COUNT, "help": "Train so many of the students that hold the rate for a short while, and the one that "
        "ranks best in full.  [default: the largest, without trials]",
    },
    "--trial-steps": {"type": COUNT, "default": 400, "show_default": True, "help": "Of training, in a trial."},
    "--study": {
        "type": PATH, "help": "Journal of the trials, in a folder that all who join see.  [default: in OUT]",
    },
    "--join": {"is_flag": True, "help": "Take trials of the study that was begun elsewhere, and train nothing else."},
    "--device": {
        "default": AUTO, "show_default": True, "metavar": "auto|cpu|cuda[:N]",
        "help": "Where it is trained; auto: on a GPU where torch has one. A run may go on elsewhere; on CPUs alone it "
        "ends in the same bits.",
    },
    "--mixed": {
        "is_flag": True, "help": "Train with products in bf16: sooner, on a GPU or a CPU that has instructions for it.",
    },
    "--resume": {"is_flag": True, "help": "Go on with the run in OUT."},
    "--dry-run": {"is_flag": True, "help": "Show what was considered, and the time of a plan of each."},
}  # fmt: skip


def distill_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """For what and on what a student is trained, how long, and which losses not."""
    for field, (kind, help) in reversed(TRAINING.items()):
        command = click.option(f"--{field.replace('_', '-')}", field, type=kind, help=help)(command)
    where = {"type": PATH, "default": Path("student"), "show_default": True, "help": "Where the student goes."}
    command = click.option("-o", "--out", **where)(command)
    for flag, settings in reversed(DISTILL.items()):
        command = click.option(flag, **settings)(command)
    return command


OF_A_PROPOSAL = frozenset({
    "model", "proposal_only", "out", "data", "cache", "seed", "steps", "learning_rate", "contexts", "device",
    "json_file",
})  # fmt: skip


def check_distill(is_proposal: bool) -> None:
    """EdgewmError for options of a student that are given for a proposal, and for a student without a rate."""
    context = click.get_current_context()
    given = {name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    strange = sorted(f"--{name.replace('_', '-')}" for name in given - OF_A_PROPOSAL)
    if is_proposal and strange:
        raise EdgewmError(f"{strange[0]} is for a student", "--proposal-only", f"leave {strange[0]} out")
    if not {"trials", "join"} & given and (lone := sorted({"study", "trial_steps"} & given)):
        flag = f"--{lone[0].replace('_', '-')}"
        raise EdgewmError(f"{flag} is for trials", flag, "give --trials or --join, too")
    if not is_proposal and "rate_hz" not in given:
        raise EdgewmError("no rate to distil for", "--rate-hz", "give how many plans a second the student is to make")


def check_slo(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not SLO.fullmatch(value):
        raise click.BadParameter(f"{value!r} is not like 'p99=20ms' (p50, p99, p99.9 or max; us, ms or s).")
    return value


def check_device(ctx: click.Context, param: click.Parameter, value: str) -> str:
    from .device.address import parse_address

    parse_address(value)  # refuse before anything is done
    return value


def check_cpus(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not CPUS.fullmatch(value):
        raise click.BadParameter(f"{value!r} is not like '2', '2,3' or '2-5'.")
    return value


def check_precision(ctx: click.Context, param: click.Parameter, value: str) -> str:
    names = (*RECIPES, AUTO)
    if value != AUTO and not is_named(value) and not Path(value).is_file():
        raise click.BadParameter(f"{value!r} is not one of {', '.join(map(repr, names))}, nor a recipe's file.")
    return value


DEVICE = click.option(
    "--device", default="local", show_default=True, callback=check_device, metavar="ssh://user@host[:port]",
    help="Which machine; ssh takes your own configuration and keys, and leaves nothing there.",
)  # fmt: skip

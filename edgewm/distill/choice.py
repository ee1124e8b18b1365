"""Which student: the largest that a target runs fast enough, in the precision that rounds least, before any training.

The model itself comes first: in another precision, or with a smaller planner that begins at a proposal, it may need no
student at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ..cuda.schedule import schedule_gpu
from ..emit import schedule_program
from ..errors import EdgewmError
from ..estimate.counts import plan_counts
from ..estimate.cpu import price_plan
from ..estimate.gpu import check_mode, has_clocks
from ..estimate.machine import Machine, gpu_of
from ..estimate.placed import price_gpu
from ..estimate.verb import machine_or_refusal
from ..models import Model, capture_model, torch_world
from ..models.proposal import Proposal
from ..options import AUTO, TRAINED, Progress
from ..passes import EXACT, LOWERING, run
from ..place import check_place, has_gpu
from ..program import Planner, Program
from ..quantize import NAMED, recipe_of
from ..reference.model import build
from ..target import Mode, Target, resolve
from .condition import numbers_of
from .shapes import Shape, as_model, briefly, config_of, jumping, of_teacher, shapes

TIMED = ("encode", "score", "plan")  # recipes ask for the first two
Triple = tuple[Shape | None, Planner, str]  # a shape, None for the model itself; a precision


@dataclass(frozen=True)
class Candidate:
    """A student's shape (None: the model itself, as it is), precision and planner; what a plan takes on the target,
    `tick_ms` {point, low, high}, its `bound`, and the `place` where that is, cpu or gpu."""

    shape: Shape | None
    precision: str
    planner: Planner
    tick_ms: dict[str, float]
    bound: str
    place: str = "cpu"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def candidate_of(found: dict[str, Any]) -> Candidate:
    """The candidate that `as_json` gave."""
    shape = found["shape"] and Shape(**found["shape"])
    return Candidate(**{**found, "shape": shape, "planner": Planner(**found["planner"])})


@dataclass(frozen=True)
class Board:
    """Where a student is to run: what `target.resolve` gave, the threads that plan and their prices (None: plans do not
    run there), and, where plans may run on its GPU, what was measured of that (empty: nothing was)."""

    target: Target
    mode: Mode
    threads: int
    machine: Machine | None
    gpu: Mapping[str, Any] | None = None


def board_of(target: str, mode: str | None, threads: int | None, measured: Path | None, place: str = "auto") -> Board:
    """EdgewmError for an unknown target, for one of which nothing is known of how fast it is, and for `place` gpu on a
    board without one, or in a mode whose clocks nobody has confirmed."""
    board, power = resolve(target, mode)
    cores = threads or power.cpu_cores or board.cpu.cores
    machine = None if place == "gpu" else machine_or_refusal(board, power, cores, measured)
    if place == "gpu":
        check_place(board, place)
        check_mode(board, power)
    may_plan = place == "gpu" or (place == "auto" and has_gpu(board) and has_clocks(power))
    return Board(board, power, cores, machine, (gpu_of(board, power) or {}) if may_plan else None)


# ------------------------------------------------------------------------------------------------------- the tick


def tick(shape: Shape | None, planner: Planner, precision: str, model: Model, board: Board) -> Candidate:
    """What `edgewm estimate` would say of it where it is sooner; a student's weights do not matter."""
    asked, found = (shape, planner, precision, model, board.target), {}
    if board.machine is not None:
        found["cpu"] = price_plan(_counts(*asked), board.machine, board.threads)
    if board.gpu is not None:
        found["gpu"] = price_gpu(schedule_gpu(_lowered(*asked)), board.target, board.mode, board.gpu or None)[0]
    place = min(found, key=lambda where: found[where]["plan_ms"]["point"])
    return Candidate(shape, precision, planner, found[place]["plan_ms"], found[place]["bound"], place)


@lru_cache(maxsize=256)
def _counts(
    shape: Shape | None, planner: Planner, precision: str, model: Model, target: Target
) -> dict[str, Any]:  # fmt: skip
    return _counted(_lowered(shape, planner, precision, model, target), target)


@lru_cache(maxsize=1)
def _lowered(shape: Shape | None, planner: Planner, precision: str, model: Model, target: Target) -> Program:
    return lowered_in(precision, _exact(shape, planner, model), target)


@lru_cache(maxsize=32)
def _exact(shape: Shape | None, planner: Planner, model: Model) -> Program:
    return exact(model if shape is None else untrained(shape, model, planner), planner)


def exact(model: Model, planner: Planner) -> Program:
    """What all precisions begin from."""
    return run(capture_model(model, planner, TIMED), EXACT)


def counts_in(precision: str, program: Program, target: Target) -> dict[str, Any]:
    """What a plan of an `exact` program in that precision does, for `price_plan`."""
    return _counted(lowered_in(precision, program, target), target)


def lowered_in(precision: str, program: Program, target: Target) -> Program:
    """The plan of an `exact` program in that precision, as kernels run it."""
    recipe, planned = recipe_of(program, precision), {"plan": program.entries["plan"]}
    return run(program.with_(entries=planned, recipe=recipe, target=target), LOWERING)


def _counted(program: Program, target: Target) -> dict[str, Any]:
    return plan_counts(schedule_program(program, target.isa), target.isa)


def untrained(shape: Shape, model: Model, planner: Planner) -> Model:
    """A student with nothing that a pass would fold away."""
    torch.manual_seed(0)
    module = build(config_of(shape, model)).eval().requires_grad_(False)
    for name, weight in module.named_parameters():
        if ".modulation." in name:  # zero at first
            torch.nn.init.normal_(weight, std=0.1)
    proposal = None
    if planner.proposal:
        width, sizes = model.proposal.first.out_features, model.proposal.std.shape
        proposal = Proposal(shape.width, width, *sizes).eval().requires_grad_(False)
    return as_model(module, model, planner, proposal)


# ------------------------------------------------------------------------------------------------------ the choice


def students_of(model: Model) -> list[Shape]:
    """Shapes other than its own in order of preference: those that begin with the model's layers, then narrower ones,
    which learn slowly (`benchmarks/README.md`); each by the weights of a step, short jumps first."""
    own, numbers = of_teacher(model), numbers_of(model)
    is_alike = model.family == torch_world.FAMILY
    found = dict.fromkeys(briefly(s, numbers) for s in jumping(shapes(own), model.planner.horizon))
    others = [s for s in found if not (is_alike and s == own)]
    return sorted(others, key=lambda s: (is_alike and s.width != own.width, -s.step_weights))


def considered(
    model: Model, board: Board, rate_hz: float, precision: str, budgets: Iterable[Sequence[Planner]],
    progress: Progress | None = None, every: bool = False,
) -> list[Candidate]:  # fmt: skip
    """What was priced to find the first that holds the rate, in order of preference; `every`: all that hold it and are
    not smaller in everything than another that does.

    `budgets` are planners, those of one group as good as each other, larger ones first; a group with which not even the
    smallest shape holds the rate is passed over. Within one, the model itself comes first, then `students_of` it; of
    one shape the larger planner, then the precision that rounds least, of all of `quantize.NAMED` for auto, but for
    those that save the smallest shape no time (a model of another family: itself).
    A candidate is not priced where one that is no larger in anything is too slow in that precision, nor where one
    before it holds the rate (`every`: one that is no smaller, and rounds no more).
    """
    say = progress or (lambda stage, done: None)
    forms, own = forms_of(precision), of_teacher(model)
    is_alike = model.family == torch_world.FAMILY
    order = [None, *students_of(model)]

    def is_larger(triple: Triple, other: Triple) -> bool:
        ours, theirs = (own if t[0] is None and is_alike else t[0] for t in (triple, other))
        is_shape = triple[0] == other[0] or (None not in (ours, theirs) and ours.holds(theirs))
        return is_shape and _tries_as_much(triple[1], other[1])

    def is_slower(triple: Triple, other: Triple) -> bool:
        return triple[2] == other[2] and is_larger(triple, other)

    def is_better(triple: Triple, other: Triple) -> bool:
        return forms.index(triple[2]) <= forms.index(other[2]) and is_larger(triple, other)

    passed: list[Candidate] = []
    for group in budgets:
        triples = [(shape, planner, form) for shape in order for planner in group for form in forms]
        ends = [triples[-len(forms) :]]
        if not is_alike:  # of another family, the model itself may be faster than any student
            ends.append([triple for triple in triples if triple[0] is None and triple[1] == group[-1]])
        priced = {triple: tick(*triple, model, board) for end in ends for triple in end}
        faster: set[tuple[bool, str]] = set()
        for end in ends:
            high = [priced[triple].tick_ms["high"] for triple in end]
            if min(high) * rate_hz <= 1e3:
                saves = (form for i, form in enumerate(forms) if high[i] < min(high[:i], default=math.inf))
                faster |= {(end[0][0] is None, form) for form in saves}
        if is_alike:  # the model itself is priced as the largest of shapes
            faster |= {(True, form) for _, form in faster}
        left = [triple for triple in triples if (triple[0] is None, triple[2]) in faster]
        while left:
            say("shapes", 1 - len(left) / len(triples))
            triple = left[len(left) // 2]
            priced[triple] = priced.get(triple) or tick(*triple, model, board)
            if meets(priced[triple], rate_hz):
                left = [o for o in left if not is_better(triple, o)] if every else left[: len(left) // 2]
            else:
                left = [other for other in left if other != triple and not is_slower(other, triple)]
        passed += [priced[triple] for triple in triples if triple in priced]
        if any(meets(c, rate_hz) for c in priced.values()):
            break
    return passed


def rivals(candidates: Sequence[Candidate], rate_hz: float) -> list[Candidate]:
    """Students that hold the rate, but for those that another is no smaller than in anything, and rounds no more."""
    held = [c for c in candidates if c.shape is not None and meets(c, rate_hz)]

    def is_better(one: Candidate, other: Candidate) -> bool:
        rounds_no_more = TRAINED.index(one.precision) <= TRAINED.index(other.precision)
        is_more = one.shape.holds(other.shape) and _tries_as_much(one.planner, other.planner)
        return one != other and rounds_no_more and is_more

    return [c for c in held if not any(is_better(other, c) for other in held)]


def _tries_as_much(one: Planner, other: Planner) -> bool:
    """Whether a search by it tries no less, and has no less to begin at."""
    return one.samples >= other.samples and one.iterations >= other.iterations and one.proposal >= other.proposal


def forms_of(precision: str) -> Sequence[str]:
    """The recipes that a precision stands for, those that round least first."""
    return NAMED if precision == AUTO else (precision,)


def holds(model: Model, planner: Planner, board: Board, rate_hz: float, precision: str) -> bool:
    """Whether the model itself plans at the rate with this planner."""
    return any(meets(tick(None, planner, form, model, board), rate_hz) for form in forms_of(precision))


def fastest(model: Model, board: Board, precision: str, planner: Planner) -> list[Candidate]:
    """The smallest student with this planner, blind, and the model itself, which may be of a faster family."""
    blind = replace(planner, proposal=False)
    ends = (*students_of(model)[-1:], None)
    return [tick(shape, blind, form, model, board) for shape in ends for form in forms_of(precision)]


def meets(candidate: Candidate, rate_hz: float) -> bool:
    """Whether a plan is made in a control period, by the upper end of what is estimated."""
    return candidate.tick_ms["high"] * rate_hz <= 1e3


def chosen(candidates: Sequence[Candidate], rate_hz: float, board: Board) -> Candidate:
    """Of those `considered`, the first that holds the rate.

    EdgewmError, with what bounds the fastest, and the rate it could hold, where none does.
    """
    held = [c for c in candidates if meets(c, rate_hz)]
    if not held:
        best = min(candidates, key=lambda c: c.tick_ms["high"])
        rate = 1e3 / best.tick_ms["high"]
        raise EdgewmError(
            f"no student plans {rate_hz:g} times a second: the fastest, in {best.precision}, takes "
            f"{best.tick_ms['high']:.3g} ms on the {best.place.upper()} (estimated, upper end), bound by {best.bound}",
            f"--rate-hz {rate_hz:g} on {board.target.name}, mode {board.mode.name}, {board.threads} threads",
            f"ask for at most {rate:.3g} Hz, or give a faster mode, more threads, --precision auto or --place auto",
        )  # fmt: skip
    return held[0]

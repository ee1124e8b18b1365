"""The run: rounds, each of new contexts that the student's own planner searched, steps, and a look at what it is worth.

A step is a function of the weights, the optimizer's state and `(seed, step)`; a round's data of the weights that it
begins with. States are kept between rounds, so a run that was killed and resumed ends in the same bits as one that was
not, on one thread of a CPU; a GPU orders sums as it likes. All of it is computed where the teacher's model is; a batch
at a time goes there. Under `torchrun` each process takes its share of a batch, and gradients are averaged.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import EdgewmError
from ..judge.sides import Side, upstream
from ..options import Progress
from ..reference.model import build, normalise
from . import fidelity, losses, proposal, prune, states, targets
from .devices import computing
from .fake_quant import Formats, formats_of, on_levels, rounded
from .material import Material, Notice, Settings, material
from .processes import Processes
from .shapes import as_model, config_of
from .space import Space
from .teacher import CONTEXTS, FRAMES, GROUPS, HELD_OUT, Arrays, Teacher, bank, frames
from .write_student import write_student

Array = np.ndarray
RUN, LOG = "run", "log.jsonl"


# ---------------------------------------------------------------------------------------------------------- a step


def answers(
    batch: Arrays, frames_: Arrays, space: Space, side: int, device: torch.device
) -> tuple[dict[str, Tensor], losses.Seen]:  # fmt: skip
    """Inputs of the student and what the teacher says of them, in the student's space, on the device."""

    def there(x: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x)).to(device)

    pictures = [frames_["frames"], batch["observation"], batch["goal"]]
    given = {
        "pictures": there(np.concatenate([p.reshape(-1, side, side, 3) for p in pictures])),
        "candidates": there(batch["candidates"]),
    }
    mapped = {key: there(space.of(batch[key])) for key in ("latent", "goal_latent", "futures")}
    latents, costs = there(space.of(frames_["latents"])), there(batch["costs"])
    return given, losses.Seen(latents, mapped["latent"], mapped["goal_latent"], mapped["futures"], costs)


def rolled(module: torch.nn.Module, starts: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Latents (B, G, K, H, D) of candidates from each start, and what the predictor's last layer says for each; one
    that jumps says it once a call."""
    said: list[Tensor] = []
    contexts, groups, each, *_ = candidates.shape
    handle = module.predictor.register_forward_hook(lambda layers, given, out: said.append(out[:, -1]))
    try:
        futures = module.rollout(starts.repeat_interleave(groups * each, 0)[:, None], candidates.flatten(0, 2))[:, 1:]
    finally:
        handle.remove()
    return tuple(x.unflatten(0, (contexts, groups, each)) for x in (futures, torch.stack(said, 1)))


def imagined(
    module: torch.nn.Module, given: Mapping[str, Tensor], theirs: losses.Seen, sees_alike: bool
) -> losses.Seen:
    """What the student says of the same; where it has its teacher's encoder, it sees what its teacher sees."""
    contexts = len(given["candidates"])
    seen, starts, goals = theirs.frames, theirs.starts, theirs.goals
    if not sees_alike:
        z = module.encode(normalise(given["pictures"])[:, None])[:, 0]
        seen, starts, goals = z.split([len(seen), contexts, contexts])
    futures, features = rolled(module, starts, given["candidates"])
    costs = (futures[..., -1, :] - goals[:, None, None]).square().mean(-1)
    return losses.Seen(seen, starts, goals, futures, costs, features)


def rate_at(settings: Settings, step: int) -> float:
    first, last = settings.learning_rate
    rate = last + (first - last) * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
    return rate * min(1.0, (step + 1) / settings.warmup_steps)


def drawn(settings: Settings, step: int, made: Material, fresh: tuple[Arrays, Arrays], share: Processes) -> Any:
    """The batch of a step: one group of candidates in each of its contexts, half of which the student searched; frames
    old and new."""
    rng = np.random.default_rng([settings.seed, step])
    n_new = settings.step_contexts // 2 if fresh[1] else 0
    old = rng.integers([settings.contexts, GROUPS], size=(settings.step_contexts - n_new, 2))
    new = rng.integers([settings.round_contexts, GROUPS], size=(n_new, 2))
    seen = share.of(rng.integers(settings.frames + len(fresh[0].get("frames", ())), size=settings.step_frames))
    pictures = [
        targets.taken(made.frames, seen[seen < settings.frames]),
        targets.taken([fresh[0]], seen[seen >= settings.frames] - settings.frames),
    ]
    return _joined([_one_group(made.banks, share.of(old)), _one_group([fresh[1]], share.of(new))]), _joined(pictures)


def _one_group(banks: list[Arrays], index: Array) -> Arrays:
    """Of banks, contexts and a group of each, `index` (n, 2)."""
    found = targets.taken(banks, index[:, 0])
    rows = np.arange(len(index))
    return {
        k: v[rows, index[:, 1]][:, None] if k in ("candidates", "futures", "costs") else v for k, v in found.items()
    }


def _joined(parts: list[Arrays]) -> Arrays:
    found = [p for p in parts if p and len(next(iter(p.values())))]
    return {key: np.concatenate([p[key] for p in found]) for key in found[0]}


# --------------------------------------------------------------------------------------------------------- the run


@dataclass
class Run:
    """What changes: the student, the running average of its weights, the optimizer, and, on the host, the best average
    so far."""

    module: torch.nn.Module
    average: torch.nn.Module
    optimizer: torch.optim.AdamW
    best: dict[str, Tensor]
    facts: dict[str, Any]
    sees_alike: bool = False  # its encoder is the teacher's, and stays so
    formats: Formats = field(default_factory=dict)

    def student(self) -> torch.nn.Module:
        """What is looked at and shipped: the average, on the levels that it is built in."""
        module = copy.deepcopy(self.average)
        on_levels(module, self.formats)
        return module

    def tensors(self) -> dict[str, Tensor]:
        found = {f"student.{k}": v for k, v in self.module.state_dict().items()}
        found |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        found |= {f"best.{k}": v for k, v in self.best.items()}
        for name, p in self.module.named_parameters():
            for key, value in self.optimizer.state.get(p, {}).items():
                found[f"adam.{key}.{name}"] = value
        return found

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.module.load_state_dict(part("student."))
        self.average.load_state_dict(part("average."))
        self.best = part("best.")
        for name, p in self.module.named_parameters():
            if (step := tensors.get(f"adam.step.{name}")) is not None:  # which AdamW keeps on the host
                moments = {key: tensors[f"adam.{key}.{name}"].to(p.device) for key in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[p] = {"step": step, **moments}
        self.facts = dict(facts)


def begun(settings: Settings, teacher: Teacher, made: Material) -> Run:
    """A fresh student, where its teacher is; drawn on the host, so that it is the same anywhere."""
    if settings.weights.get("features") and not prune.begins_as(settings.shape, teacher.model):
        raise EdgewmError(
            "a student that is narrower than its teacher, or jumps, has no features like its", "--losses features",
            "leave it out",
        )  # fmt: skip
    torch.manual_seed(settings.seed)
    module = build(config_of(settings.shape, teacher.model)).eval().to(teacher.model.device)
    facts: dict[str, Any] = {"step": 0, "best_rank": -math.inf, "best_round": 0, "elapsed_s": 0.0, "history": []}
    sees_alike = settings.start != "random" and prune.take_encoder(module, teacher, made.space)
    if settings.start == "teacher":
        prune.stand_still(module, made.space.of(made.frames[0]["latents"]))
        facts["lost_without_layer"] = prune.take_predictor(module, teacher, made.space, made.held)
    if sees_alike:
        module.encoder.requires_grad_(False)
        module.projector.requires_grad_(False)
    learning = [p for p in module.parameters() if p.requires_grad]
    matrices = [p for p in learning if p.ndim >= 2]
    rest = [p for p in learning if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    average = copy.deepcopy(module).requires_grad_(False)
    formats = formats_of(settings.shape, teacher.model, settings.planner, settings.precision)
    return Run(module, average, torch.optim.AdamW(groups, betas=(0.9, 0.99)), {}, facts, sees_alike, formats)


def train(
    settings: Settings, teacher: Teacher, out: Path, *, cache: Path | None = None, resume: bool = False,
    progress: Progress | None = None, notice: Notice | None = None, stop_after: int | None = None,
    share: Processes | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Trains in `out`, writes the student there, and returns its facts: figures of each round, which was best.

    It is computed where the teacher's model is; `devices` of the facts are the kinds that it has been on. `stop_after`
    ends the run after so many steps, as a kill would; `share` says which processes take part, by default all that
    torchrun started. EdgewmError where a run is in the way, where losses are no numbers, and where the disk or a GPU's
    memory is full; what was best before stays.
    """
    say, tell = progress or (lambda stage, done: None), notice or (lambda text: None)
    device = teacher.model.device
    share = share or replace(Processes.here(), device=device)
    alone = states.alone(out / RUN) if share.is_first else nullcontext()
    with computing(device), share, states.disk(out), alone:
        if states.kept(out / RUN) and not resume:
            raise EdgewmError("the directory already holds a run", str(out), "pass --resume, or give another -o")
        made = share.first_then_all(lambda: material(settings, teacher, cache or out / RUN / "cache", say, tell))
        if made.proposal is not None and share.is_first:
            proposal.write(made.proposal, out)
        run = begun(settings, teacher, made)
        found = states.newest(out / RUN, tell) if resume else None
        if found is not None:
            run.restore(*found)
        share.as_first([*run.module.state_dict().values(), *run.average.state_dict().values()])
        run.facts["devices"] = [*dict.fromkeys([*run.facts.get("devices", ()), device.type])]
        keep_log(out / LOG, run.facts["step"])
        _rounds(settings, teacher, out, made, run, share, say, stop_after or settings.steps)
    return run.facts


def _rounds(
    settings: Settings, teacher: Teacher, out: Path, made: Material, run: Run, share: Processes, say: Progress,
    stop: int,
) -> None:  # fmt: skip
    clock, before_s, first_step = time.monotonic(), run.facts["elapsed_s"], run.facts["step"]
    while run.facts["step"] < min(stop, settings.steps) and not _is_over(settings, run.facts):
        start = run.facts["step"]
        index = start // settings.round_steps
        end = min(start + settings.round_steps, settings.steps)
        fresh = _fresh(settings, teacher, made, run, index)
        sums: dict[str, float] = {}
        for step in range(start, end):
            for name, value in _step(settings, run, made, fresh, step, teacher, share, out).items():
                sums[name] = sums.get(name, 0.0) + value / (end - start)
            spent_s = time.monotonic() - clock
            left_s = spent_s / (step + 1 - first_step) * (settings.steps - step - 1)
            say(f"step {step + 1}/{settings.steps}, {left_s / 60:.0f} min left", (step + 1) / settings.steps)
        student = run.student()
        side = _side(student, teacher, settings, made)
        seed = HELD_OUT + settings.seed * 4096
        found = share.first_says(lambda side=side, seed=seed: fidelity.look(teacher, side, made.held, seed))
        elapsed_s = before_s + time.monotonic() - clock
        run.facts |= {"step": end, "elapsed_s": elapsed_s}
        line = {"step": end, **found, **sums}
        run.facts["history"] = [*run.facts["history"], line]
        is_best = not run.best or found["rank"] > run.facts["best_rank"]
        if is_best:
            run.best = {name: value.cpu() for name, value in student.state_dict().items()}
            run.facts |= {"best_rank": found["rank"], "best_round": index}
        if share.is_first:  # the state comes last: what a kill before it leaves is written again
            if is_best:
                write_student(out, run.best, config_of(settings.shape, teacher.model), teacher.model, settings.planner)
            with (out / LOG).open("a") as log:
                log.write(json.dumps({**line, "elapsed_s": round(elapsed_s, 1)}) + "\n")
            states.keep(out / RUN, end, run.tensors(), run.facts)
        share.meet()


def _is_over(settings: Settings, facts: Mapping[str, Any]) -> bool:
    rounds = facts["step"] // settings.round_steps
    return rounds > 0 and rounds - 1 - facts["best_round"] >= settings.patience


def _side(module: torch.nn.Module, teacher: Teacher, settings: Settings, made: Material) -> Side:
    return upstream(as_model(module, teacher.model, settings.planner, made.proposal), settings.planner)


def _fresh(
    settings: Settings, teacher: Teacher, made: Material, run: Run, index: int
) -> tuple[Arrays, Arrays]:  # fmt: skip
    """New frames, and new contexts that the student's planner searched, never those of another round; none in the
    first, which has no student yet."""
    if index == 0:
        return {}, {}
    seed = settings.seed * 4096 + 2048 + index
    student = _side(run.student(), teacher, settings, made)
    seen = {} if run.sees_alike else frames(teacher, settings.round_frames, FRAMES + seed)
    return seen, bank(teacher, settings.round_contexts, CONTEXTS + seed, student)


def _step(
    settings: Settings, run: Run, made: Material, fresh: tuple[Arrays, Arrays], step: int, teacher: Teacher,
    share: Processes, out: Path,
) -> dict[str, float]:  # fmt: skip
    side = teacher.model.ports_of("observation")[0].shape[1]
    batch, seen = drawn(settings, step, made, fresh, share)
    device = teacher.model.device
    given, theirs = answers(batch, seen, made.space, side, device)
    with rounded(run.module, run.formats), torch.autocast(device.type, torch.bfloat16, enabled=settings.mixed):
        ours = imagined(run.module, given, theirs, run.sees_alike)
    ours = losses.Seen(*(x.float() for x in vars(ours).values()))
    if settings.weights.get("features"):
        with torch.no_grad():
            starts = torch.from_numpy(np.array(batch["latent"])).to(device)
            told = rolled(teacher.model.torch, starts, given["candidates"])[1]
        theirs = replace(theirs, features=told)
    loss, terms = losses.total(ours, theirs, made.facts, settings.weights)
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    share.average([p.grad for p in run.module.parameters() if p.grad is not None])
    norm = torch.nn.utils.clip_grad_norm_(run.module.parameters(), settings.gradient_clip)
    figures = {"loss": loss.detach(), **{f"loss_{k}": v.detach() for k, v in terms.items()}, "gradient_norm": norm}
    values = torch.stack([*figures.values()]).tolist()  # the host waits for the device once a step
    found = share.mean(dict(zip(figures, values, strict=True)))
    if not all(map(math.isfinite, found.values())):
        bad = next(name for name, value in found.items() if not math.isfinite(value))
        raise EdgewmError(
            f"{bad} is {found[bad]} at step {step}", str(out),
            "the best student before stays there; begin again with a lower --learning-rate",
        )  # fmt: skip
    for group in run.optimizer.param_groups:
        group["lr"] = rate_at(settings, step)
    run.optimizer.step()
    with torch.no_grad():
        keep = min(settings.average, (step + 1) / (step + 10))
        for a, p in zip(run.average.parameters(), run.module.parameters(), strict=True):
            a.lerp_(p, 1 - keep)
    return found


def check_training(training: Mapping[str, Any]) -> None:
    """EdgewmError for a number that no run can be made with."""
    for name, value in training.items():
        if isinstance(value, (int, float)) and not value > (-1 if name in ("warmup_steps", "weight_decay") else 0):
            raise EdgewmError(f"{name} is {value}", f"--{name.replace('_', '-')}", "give a positive number")


def keep_log(path: Path, step: int) -> None:
    """Drops the lines that a killed run wrote after its last state, and one that was cut off."""
    if path.exists():
        whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        kept = [line for line in whole if json.loads(line)["step"] <= step]
        targets.write_bytes(path, "".join(kept).encode())

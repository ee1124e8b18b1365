"""What compressing a teacher's predictor saves and costs before any training: ranks, heads, channels.

    python benchmarks/compression.py [--model reference] [--target orin --mode MAXN] [--contexts 6]
    python benchmarks/compression.py --published
    python benchmarks/compression.py --trained 240 [--study FILE]

Each row is the model with one thing done to it: modulations of all layers through few numbers (`distill/condition.py`),
the products of an MLP or an attention as two of a lower rank (of the least error on what they read while the planner
searches), half of the heads or channels. Times are estimates for the target of a plan with half of the planner's
candidates, of students of one frame (`window 1`); the rest is of held-out contexts, with the model's own window.
`--published` gives times at the sizes of LeWM's predictor (18M): nobody has trained it, so there is nothing to judge.
`--trained` trains students of several shapes for so many steps each on the same answers, as `distill --trials` does
(on fewer contexts), and judges them on the same held-out searches.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recording import add_flags, finish
from torch import nn

from edgewm.distill import choice, condition, fidelity, losses, prune, trials, verb
from edgewm.distill.proposal import Settings as Beginning
from edgewm.distill.shapes import as_model, briefly, config_of, of_teacher, smaller
from edgewm.distill.space import Space
from edgewm.distill.teacher import HELD_OUT, Teacher, held_out, teacher_of
from edgewm.distill.train import Settings
from edgewm.estimate.cpu import price_plan
from edgewm.judge.sides import upstream
from edgewm.judge.sources import source_of
from edgewm.models import Model, load
from edgewm.program import Planner
from edgewm.reference.model import build

FORMS = ("fp32", "w8a8")
RANKS = (64, 32)
PARTS = {"MLPs": "mlp.", "attention": "attn."}
# arXiv 2603.19312
PUBLISHED = {"width": 192, "depth": 6, "heads": 16, "head_dim": 64, "mlp_dim": 2048, "proj_dim": 2048}
FEW = {"frames": 1024, "contexts": 48, "round_contexts": 16, "held_out": 16}
Change = Callable[[nn.Module], nn.Module]


def narrowed(teacher: Teacher, held: Mapping[str, Any], **sizes: Any) -> nn.Module:
    """A student of the teacher's shape but for `sizes`, begun as `distill` begins it."""
    shape = replace(of_teacher(teacher.model), **sizes)
    made = build(config_of(shape, teacher.model)).eval()
    first = np.zeros(shape.width, np.float32), np.eye(shape.width, dtype=np.float32)
    prune.take_encoder(made, teacher, Space(*first, 1.0, 1.0))
    prune.take_predictor(made, teacher, Space(*first, 1.0, 1.0), held)
    return made.requires_grad_(False)


def products(block: nn.Module) -> dict[str, nn.Module]:
    """All but the modulation, by name."""
    return {name: m for name, m in block.named_modules() if isinstance(m, nn.Linear) and "modulation" not in name}


def thin(module: nn.Module, part: str, rank: int, read: Mapping[str, prune.Moments]) -> nn.Module:
    """The module with the products of this part of each layer in two: the directions of results that vary most."""
    made = copy.deepcopy(module)
    for i, block in enumerate(made.predictor.blocks):
        for name, layer in products(block).items():
            if not name.startswith(part):
                continue
            place, _, last = name.rpartition(".")
            weight, inputs = layer.weight.double(), layer.in_features
            middle, power = read.get(f"{i}.{name}") or (weight.new_zeros(inputs), torch.eye(inputs, dtype=weight.dtype))
            axes = torch.linalg.eigh(weight @ power @ weight.T).eigenvectors[:, -rank:]
            first, second = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, layer.out_features)
            at = weight @ middle
            with torch.no_grad():
                first.weight.copy_(axes.T @ weight)
                second.weight.copy_(axes)
                second.bias.copy_(layer.bias.double() + at - axes @ (axes.T @ at))
            setattr(block.get_submodule(place), last, nn.Sequential(first, second))
    return made.requires_grad_(False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reference")
    parser.add_argument("--target", default="orin")
    parser.add_argument("--mode", default="MAXN")
    parser.add_argument("--contexts", type=int, default=6)
    parser.add_argument("--published", action="store_true")
    parser.add_argument("--trained", type=int, metavar="STEPS")
    parser.add_argument("--study", type=Path, help="journal, to go on with or to share")
    add_flags(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    kind = trained if given.trained else published if given.published else rows
    finish(kind(given), given)
    return 0


def rows(given: argparse.Namespace) -> list[dict[str, Any]]:
    model = load(given.model)
    planner = smaller(model.planner, model.planner.samples // 2, model.planner.iterations)
    teacher = teacher_of(given.model, model, planner, source_of(given.model, model))
    board = choice.board_of(given.target, given.mode, None, None)
    held, own = held_out(teacher, given.contexts, HELD_OUT), of_teacher(model)
    layers = range(len(model.torch.predictor.blocks))
    read = prune.inputs_of(teacher, held, layers, own.window, products)

    def of_rank(part: str, rank: int) -> Change:
        return lambda module: thin(module, part, rank, read)

    whole: dict[str, tuple[dict[str, Any], Change | None]] = {"as it is": ({}, None)}
    whole |= {f"modulations through {n} numbers": ({"condition": n}, None) for n in (*RANKS, 16)}
    whole |= {f"{what} of rank {r}": ({}, of_rank(part, r)) for what, part in PARTS.items() for r in RANKS}
    whole |= {"half of the heads": ({"heads": own.heads // 2}, None)}
    whole |= {"half of the channels": ({"mlp_dim": own.mlp_dim // 2}, None), "window 1": ({"window": 1}, None)}
    out = []
    for name, (sizes, change) in whole.items():
        changed, student = (
            as_model((change or same)(narrowed(teacher, held, **{**sizes, **more})), model, planner)
            for more in ({}, {"window": 1})
        )
        found = fidelity.look(teacher, upstream(changed, planner), held, HELD_OUT)
        row = {"table": "compression", "name": name, **plan_ms(student, planner, board), "contexts": given.contexts}
        row |= {"least_spearman": found["spearman_min"], "rank": found["rank"]}
        row |= {key: found[key] for key in ("elite_overlap", "regret")}
        row["command"] = f"python benchmarks/compression.py --contexts {given.contexts}"
        out.append(row)
        print({k: v for k, v in row.items() if k not in ("table", "command")}, flush=True)
    return out


def published(given: argparse.Namespace) -> list[dict[str, Any]]:
    """LeWM's predictor behind the model's encoder, with weights that nobody trained."""
    model, out = load(given.model), []
    board = choice.board_of(given.target, given.mode, None, None)
    planner = smaller(model.planner, model.planner.samples // 2, model.planner.iterations)
    shape = replace(of_teacher(model), window=1, **PUBLISHED)
    ranks = {f"{what} of rank {r}": (part, r) for what, part in PARTS.items() for r in (96, 48)}
    for name in ("as it is", "modulations through 64 numbers", *ranks):
        made = choice.untrained(replace(shape, condition=64) if "numbers" in name else shape, model, planner)
        if name in ranks:
            made = as_model(thin(made.torch, *ranks[name], {}), model, planner)
        times = plan_ms(made, planner, board)
        command = "python benchmarks/compression.py --published"
        out.append({"table": "compression-published", "name": name, **times, "command": command})
        print(out[-1], flush=True)
    return out


def trained(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Students as wide as the teacher, which begin with its layers, and narrower ones, which begin anew."""
    model = load(given.model)
    planner = smaller(model.planner, model.planner.samples // 2, model.planner.iterations)
    own, source = of_teacher(model), source_of(given.model, model)
    one = replace(own, window=1)
    board = choice.board_of(given.target, given.mode, None, None)
    half, narrow = {"heads": own.heads // 2, "mlp_dim": own.mlp_dim // 2}, {"proj_dim": own.proj_dim // 2}
    tried = [
        replace(one, depth=2), replace(one, **half), replace(one, depth=1), replace(own, depth=1),
        replace(one, **{key: 3 * getattr(own, key) // 4 for key in ("width", "heads", "mlp_dim", "proj_dim")}),
        replace(one, width=own.width // 2, **half, **narrow),
    ]  # fmt: skip
    shapes = [briefly(shape, condition.numbers_of(model)) for shape in tried]
    candidates = [choice.tick(shape, planner, "fp32", model, board) for shape in shapes]

    def teaching(planner: Planner) -> Teacher:
        return teacher_of(given.model, model, planner, source)

    def settings(candidate: choice.Candidate) -> Settings:
        half = -(-given.trained // 2)
        usual = verb.settings_of(candidate, model, losses.DEFAULT, FEW, Beginning(), 0)
        return replace(usual, steps=given.trained, round_steps=half)

    with tempfile.TemporaryDirectory(prefix="edgewm-") as folder:
        out = given.study.parent if given.study else Path(folder)
        asked = dict.fromkeys((*trials.KEYS, *trials.CHOSEN_FOR)) | {"trial_steps": given.trained, "training": FEW}
        opened = trials.begin(given.study or out / trials.JOURNAL, asked, lambda: candidates, verb.name_of)
        trials.work(opened, teaching, settings, teaching(planner), out, out / "cache", lambda *told: None, print)
        found = trials.best_of(opened)[1]
    out = []
    for row in found:
        told = row["figures"]
        out.append({
            "table": "compression-trained", "name": row["name"], "fp32_ms": row["candidate"]["tick_ms"]["point"],
            "begins_with_layers": "yes" if row["candidate"]["shape"]["width"] == own.width else "no",
            "contexts": FEW["held_out"], "least_spearman": told["spearman_min"], "rank": told["rank"],
            "elite_overlap": told["elite_overlap"], "regret": told["regret"],
            "command": f"python benchmarks/compression.py --trained {given.trained}",
        })  # fmt: skip
    return out


def same(module: nn.Module) -> nn.Module:
    return module


def plan_ms(model: Model, planner: Planner, board: choice.Board) -> dict[str, float]:
    """A plan by the estimate, in each precision."""
    program, found = choice.exact(model, planner), {}
    for form in FORMS:
        counts = choice.counts_in(form, program, board.target)
        found[f"{form}_ms"] = price_plan(counts, board.machine, board.threads)["plan_ms"]["point"]
    return found


if __name__ == "__main__":
    sys.exit(main())

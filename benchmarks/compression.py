"""What compressing a teacher's predictor saves and costs before any training: ranks, heads, channels.

    python benchmarks/compression.py [--model reference] [--target orin --mode MAXN] [--contexts 6]

Each row is the model with one thing done to it: modulations of all layers through few numbers (`distill/condition.py`),
the products of an MLP or an attention as two of a lower rank (of the least error on what they read while the planner
searches), half of the heads or channels. Times are estimates for the target of a plan with half of the planner's
candidates, of the model and of its students of one frame (`window 1`); the rest is of held-out contexts.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from recording import add_flags, finish
from torch import nn

from edgewm.distill import choice, fidelity, prune
from edgewm.distill.shapes import as_model, config_of, of_teacher, smaller
from edgewm.distill.space import Space
from edgewm.distill.teacher import HELD_OUT, Teacher, held_out, teacher_of
from edgewm.estimate.cpu import price_plan
from edgewm.judge.sides import upstream
from edgewm.judge.sources import source_of
from edgewm.models import Model, load
from edgewm.program import Planner
from edgewm.reference.model import build

FORMS = ("fp32", "w8a8")
RANKS = (64, 32)
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
            middle, power = read[f"{i}.{name}"]
            weight = layer.weight.double()
            axes = torch.linalg.eigh(weight @ power @ weight.T).eigenvectors[:, -rank:]
            first, second = nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features)
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
    add_flags(parser)
    given = parser.parse_args()
    finish(rows(given), given)
    return 0


def rows(given: argparse.Namespace) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
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
    whole |= {f"MLPs of rank {r}": ({}, of_rank("mlp.", r)) for r in RANKS}
    whole |= {f"attention of rank {r}": ({}, of_rank("attn.", r)) for r in RANKS}
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

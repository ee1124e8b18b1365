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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from recording import add_flags, finish
from torch import Tensor, nn

from edgewm.distill import choice, condition, fidelity, prune
from edgewm.distill.shapes import as_model, config_of, of_teacher, smaller
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


def narrowed(teacher: Teacher, **sizes: Any) -> nn.Module:
    """A student of the teacher's shape but for `sizes`, begun from all of its layers."""
    source, shape = teacher.model.torch, replace(of_teacher(teacher.model), **sizes)
    made = build(config_of(shape, teacher.model)).eval()
    kept = range(len(source.predictor.blocks))
    sized = {key: value.shape for key, value in made.state_dict().items()}
    made.load_state_dict({k: v for k, v in source.state_dict().items() if sized.get(k) == v.shape}, strict=False)
    with torch.no_grad():
        made.pos_embed.copy_(source.pos_embed[:, : made.history])
        for i in kept:
            prune.narrow(made.predictor.blocks[i], source.predictor.blocks[i])
    if shape.condition is not None:
        condition.take(made, teacher.model, kept)
    return made.requires_grad_(False)


def thin(module: nn.Module, names: tuple[str, ...], rank: int, read: Mapping[str, Tensor]) -> nn.Module:
    """The module with the products `names` of each layer in two: the directions of their results that vary most."""
    made = copy.deepcopy(module)
    for i, block in enumerate(made.predictor.blocks):
        for name in names:
            holder, last = block.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
            layer, x = getattr(holder, last), read[f"{i}.{name}"].double()
            weight, middle = layer.weight.double(), x.mean(0)
            _, _, axes = torch.linalg.svd(torch.linalg.qr(x - middle).R @ weight.T, full_matrices=False)
            axes, first = axes[:rank].T, nn.Linear(layer.in_features, rank, bias=False)
            second = nn.Linear(rank, layer.out_features)
            with torch.no_grad():
                first.weight.copy_(axes.T @ weight)
                second.weight.copy_(axes)
                at = weight @ middle
                second.bias.copy_(layer.bias.double() + at - axes @ (axes.T @ at))
            setattr(holder, last, nn.Sequential(first, second))
    return made.requires_grad_(False)


@contextmanager
def reading(module: nn.Module, names: tuple[str, ...]) -> Iterator[dict[str, Tensor]]:
    """Rows that these products of each layer read within."""
    found: dict[str, Tensor] = {}
    hooks = []
    for i, block in enumerate(module.predictor.blocks):
        for name in names:
            def seen(layer: nn.Module, given: tuple[Tensor], key: str = f"{i}.{name}") -> None:
                found[key] = given[0].flatten(0, -2)[:20000]

            hooks.append(block.get_submodule(name).register_forward_pre_hook(seen))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


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
    mlp, attention = ("mlp.0", f"mlp.{len(model.torch.predictor.blocks[0].mlp) - 1}"), ("attn.qkv", "attn.proj")
    with reading(model.torch, (*mlp, *attention)) as read, torch.no_grad():
        z, goal = (torch.from_numpy(held[key][0])[None] for key in ("latent", "goal_latent"))
        candidates = torch.from_numpy(held["candidates"][0].reshape(-1, *held["candidates"].shape[3:]))
        model.torch.cost(model.torch.rollout(z.expand(len(candidates), -1)[:, None], candidates), goal)

    def of_rank(names: tuple[str, ...], rank: int) -> Change:
        return lambda module: thin(module, names, rank, read)

    whole: dict[str, tuple[dict[str, Any], Change | None]] = {"as it is": ({}, None)}
    whole |= {f"modulations through {n} numbers": ({"condition": n}, None) for n in (*RANKS, 16)}
    whole |= {f"MLPs of rank {r}": ({}, of_rank(mlp, r)) for r in RANKS}
    whole |= {f"attention of rank {r}": ({}, of_rank(attention, r)) for r in RANKS}
    whole |= {"half of the heads": ({"heads": own.heads // 2}, None)}
    whole |= {"half of the channels": ({"mlp_dim": own.mlp_dim // 2}, None), "window 1": ({"window": 1}, None)}
    out = []
    for name, (sizes, change) in whole.items():
        changed, student = (
            as_model((change or same)(narrowed(teacher, **{**sizes, **more})), model, planner)
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

"""Faults to plant in a compiled LeWM: what compilers, quantizers and people really get wrong, one edit each.

An edit is made where such a fault would be: in the model before it is captured, in the program after the exact passes,
or after quantization. Names of weights are those of the reference model's family.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from edgewm import expr as e
from edgewm.models import Model
from edgewm.ops import make
from edgewm.program import Graph, Node, Program, rewrite

HEADS = 4  # of the reference model's predictor
Array = np.ndarray
Rule = Callable[[Node, tuple[Node, ...]], Node | None]  # node, rewritten sources -> another node, or None for the same


@dataclass(frozen=True)
class Fault:
    """`stage` is model, captured, exact or quantized: what `edit` takes and returns another of."""

    name: str
    stage: str
    edit: Callable[[Any], Any]
    precision: str = "fp32"


# ------------------------------------------------------------------------------------------------------------- tools


def weights(**changes: Callable[[Array], Array]) -> Callable[[Program], Program]:
    """Another array for each weight whose name ends in a key (`__` stands for a dot)."""

    def edit(program: Program) -> Program:
        new = dict(program.weights)
        for ending, change in changes.items():
            names = [n for n in new if n.endswith(ending.replace("__", "."))]
            assert names, ending
            new |= {n: np.ascontiguousarray(change(new[n]), new[n].dtype) for n in names}
        return program.with_(weights=new)

    return edit


def nodes(rule: Rule, *entries: str) -> Callable[[Program], Program]:
    """The rule on every node of those entries (of all), of nested graphs too; it must apply somewhere."""

    def edit(program: Program) -> Program:
        hits = 0

        def changed(graph: Graph) -> Graph:
            nonlocal hits

            def apply(node: Node, sources: tuple[Node, ...]) -> Node:
                nonlocal hits
                attrs = {k: changed(v) if isinstance(v, Graph) else v for k, v in node.attrs}
                same = make(node.op, *sources, **attrs)
                found = rule(same, sources)
                hits += found is not None
                return same if found is None else found

            return Graph(rewrite(graph.outputs, apply))

        found = {n: changed(g) if not entries or n in entries else g for n, g in program.entries.items()}
        assert hits, "the fault applies nowhere"
        return program.with_(entries=found)

    return edit


def is_const(node: Node, value: float) -> bool:
    return node.op == "const" and float.fromhex(node["value"]) == np.float32(value)


def reads(node: Node, ending: str) -> bool:
    """Whether the node reads the weight directly, through shapes at most."""
    while node.op in ("reshape", "expand", "slice", "permute"):
        node = node.sources[0]
    return node.op == "weight" and node["name"].endswith(ending)


def with_score(change: Callable) -> Callable[[Model], Model]:
    """`change(score, module, z, goal, candidates)` in the place of the model's score."""
    return lambda model: replace(model, score=lambda *given: change(model.score, *given))


# ------------------------------------------------------------------------------------------------------ weights, shapes


def dim_major(qkv: Array) -> Array:
    """Heads laid out with the dimension first."""
    parts = qkv.reshape(qkv.shape[0], 3, HEADS, -1).swapaxes(2, 3)
    return parts.reshape(qkv.shape)


def swapped_qk(qkv: Array) -> Array:
    q, k, v = np.split(qkv, 3, -1)
    return np.concatenate([k, q, v], -1)


def coarse(bits: int) -> Callable[[Array], Array]:
    """Round to nearest, one scale for the whole tensor."""

    def rounded(w: Array) -> Array:
        step = np.abs(w).max() / (2 ** (bits - 1) - 1)
        return np.rint(w / step) * step

    return rounded


def rotated(w: Array) -> Array:
    """Columns in another basis, as another training run has it."""
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(w.shape[-1], w.shape[-1])))
    return w @ basis


def pairs_swapped(w: Array) -> Array:
    """Rows of the action encoder: x and y change places."""
    return w.reshape(-1, 2, w.shape[-1])[:, ::-1].reshape(w.shape)


def y_reversed(w: Array) -> Array:
    return (w.reshape(-1, 2, w.shape[-1]) * np.float32([1, -1])[:, None]).reshape(w.shape)


def block_backwards(w: Array) -> Array:
    return w.reshape(-1, 2, w.shape[-1])[::-1].reshape(w.shape)


def one_bit(w: Array) -> Array:
    """One weight with the top free bit of its exponent set."""
    new = w.copy()
    bits = new.view(np.uint32)
    bits[17, 33] |= np.uint32(1 << 30)
    return new


def blocks_swapped(program: Program) -> Program:
    new = dict(program.weights)
    for name in program.weights:
        if "predictor.blocks.0." in name:
            other = name.replace("blocks.0.", "blocks.2.")
            new[name], new[other] = program.weights[other], program.weights[name]
    return program.with_(weights=new)


def positions_later(program: Program) -> Program:
    """Each window reads its positions one further on, the last one twice."""
    new = dict(program.weights)
    table = next(w for n, w in new.items() if n == "pos_embed")
    later = np.concatenate([table[:, 1:], table[:, -1:]], 1)
    new |= {n: np.ascontiguousarray(later[:, : w.shape[1]]) for n, w in new.items() if n.startswith("pos_embed")}
    return program.with_(weights=new)


def masks(change: Callable[[Array], Array]) -> Callable[[Program], Program]:
    """The causal masks, square constants of zeros and ones."""

    def is_mask(name: str, w: Array) -> bool:
        return name.startswith("constant/") and w.dtype == np.int32 and w.ndim == 2 and w.shape[0] == w.shape[1]

    def edit(program: Program) -> Program:
        new = {n: change(w).astype(w.dtype) if is_mask(n, w) else w for n, w in program.weights.items()}
        assert any(is_mask(n, w) for n, w in program.weights.items())
        return program.with_(weights=new)

    return edit


# ------------------------------------------------------------------------------------------------------------- graphs


def clipped(node: Node, sources: tuple[Node, ...]) -> Node | None:
    if node.op == "add" and any(reads(s, "pred_proj.3.bias") for s in sources):
        return e.maximum(e.minimum(node, 1.0), -1.0)
    return None


def softmax_scale(node: Node, sources: tuple[Node, ...]) -> Node | None:
    if node.op == "mul" and any(s.op == "matmul" for s in sources) and any(s.op == "const" for s in sources):
        return next(s for s in sources if s.op == "matmul")
    return None


def gelu_left_out(node: Node, sources: tuple[Node, ...]) -> Node | None:
    return sources[0] if node.op == "gelu" else None


def stale_row(node: Node, sources: tuple[Node, ...]) -> Node | None:
    """Where rows of a window are put together, the newest is the one before it."""
    alike = node.op == "concat" and len(sources) >= 2 and sources[-1].shape == sources[-2].shape
    if alike and len(node.shape) in (4, 5) and node.dtype == "f32":
        return e.concat([*sources[:-1], sources[-2]], node["axis"])
    return None


def goal_for_start(node: Node, sources: tuple[Node, ...]) -> Node | None:
    swapped = {"z": "goal", "goal": "z"}
    if node.op == "input" and node["name"] in swapped and node.dtype == "f32":
        return e.input(swapped[node["name"]], node.shape)
    return None


def dearest(node: Node, sources: tuple[Node, ...]) -> Node | None:
    return e.topk(e.neg(sources[0]), node["k"]) if node.op == "topk" else None


def first_noise(node: Node, sources: tuple[Node, ...]) -> Node | None:
    return e.const(0, "u32") if node.op == "input" and node["name"] == "counter" else None


def first_plan(node: Node, sources: tuple[Node, ...]) -> Node | None:
    """The counter of plans is not looked at, but counted on."""
    if node.op == "input" and node["name"] == "plan_counter" and node.shape == (1,):
        return e.mul(node, e.const(0, "u32"))
    return None


def no_bounds(node: Node, sources: tuple[Node, ...]) -> Node | None:
    bound = {"max": -1.0, "min": 1.0}.get(node.op)
    if bound is None or not any(is_const(s, bound) for s in sources):
        return None
    return next(s for s in sources if not is_const(s, bound))


def no_residual(node: Node, sources: tuple[Node, ...]) -> Node | None:
    """A branch without what it was added to, in the last layer's attention."""
    if node.op != "add":
        return None
    for branch in sources:
        if branch.op == "mul" and any(_is_sum_with(s, "predictor.blocks.1.mlp.2.bias") for s in branch.sources):
            return branch
    return None


def _is_sum_with(node: Node, ending: str) -> bool:
    return node.op == "add" and any(reads(s, ending) for s in node.sources)


def leaking(node: Node, sources: tuple[Node, ...]) -> Node | None:
    """A trace of the first candidate in all the others, as a shared scale or a tile too wide leaves it."""
    if node.op == "add" and any(reads(s, "pred_proj.3.bias") for s in sources) and node.shape[0] > 1:
        first = e.expand(e.narrow(node, 0, 0, 1), node.shape)
        return e.add(node, e.mul(first, 1e-5))
    return None


def history_of(frames: int) -> Callable[[Model], Model]:
    """A rollout that remembers fewer frames than the model was trained with."""

    def forgetful(score: Callable, module: torch.nn.Module, *given: torch.Tensor) -> torch.Tensor:
        kept, module.history = module.history, frames
        try:
            return score(module, *given)
        finally:
            module.history = kept

    return with_score(forgetful)


FAULTS: tuple[Fault, ...] = (
    Fault("one layer's weights twice too large", "captured",
          weights(predictor__blocks__1__mlp__2__weight=lambda w: 2 * w)),
    Fault("one layer's weights half as large", "captured",
          weights(predictor__blocks__0__attn__proj__weight=lambda w: w / 2)),
    Fault("a normalisation's scale halved", "captured", weights(pred_proj__1__scale=lambda w: w / 2)),
    Fault("a normalisation not settled", "captured", weights(pred_proj__1__shift=np.zeros_like)),
    Fault("heads laid out dimension first", "captured", weights(predictor__blocks__1__attn__qkv__weight=dim_major)),
    Fault("a projection transposed", "captured", weights(predictor__blocks__0__attn__proj__weight=lambda w: w.T)),
    Fault("queries and keys swapped", "captured", weights(predictor__blocks__1__attn__qkv__weight=swapped_qk)),
    Fault("a bias with the wrong sign", "captured", weights(pred_proj__3__bias=lambda w: -w)),
    Fault("a bias dropped", "captured", weights(action_encoder__1__2__bias=np.zeros_like)),
    Fault("a layer left out", "captured", weights(predictor__blocks__2__mlp__2__weight=np.zeros_like)),
    Fault("no positions in the predictor", "captured", weights(pos_embed=np.zeros_like)),
    Fault("positions one further on", "captured", positions_later),
    Fault("no positions in the encoder", "captured", weights(vit__pos_embed=np.zeros_like)),
    Fault("axes of the action swapped", "captured", weights(action_encoder__0__weight=pairs_swapped)),
    Fault("one axis of the action reversed", "captured", weights(action_encoder__0__weight=y_reversed)),
    Fault("the periods of an action backwards", "captured", weights(action_encoder__0__weight=block_backwards)),
    Fault("an encoder of another training run", "captured", weights(projector__3__weight=rotated)),
    Fault("a decoder of another training run", "captured", weights(pred_proj__3__weight=rotated)),
    Fault("the predictor in 3 bits", "captured", weights(mlp__0__weight=coarse(3), mlp__2__weight=coarse(3))),
    Fault("a layer's weights clipped", "captured",
          weights(predictor__blocks__1__mlp__0__weight=lambda w: np.clip(w, -w.std(), w.std()))),
    Fault("layers in another order", "captured", blocks_swapped),
    Fault("one bit flipped", "captured", weights(predictor__blocks__0__mlp__0__weight=one_bit)),
    Fault("red and blue swapped", "captured",
          weights(patch_embed__proj__weight=lambda w: w.reshape(3, -1, w.shape[1])[::-1].reshape(w.shape))),
    Fault("no causal mask", "exact", masks(np.ones_like)),
    Fault("a causal mask one too strict", "exact", masks(lambda m: np.tril(m, -1) | np.eye(len(m), dtype=m.dtype)[:1])),
    Fault("latents clipped", "exact", nodes(clipped)),
    Fault("no scale in the softmax", "exact", nodes(softmax_scale)),
    Fault("an activation left out", "exact", nodes(gelu_left_out)),
    Fault("a residual left out", "exact", nodes(no_residual)),
    Fault("a stale row of keys and values", "exact", nodes(stale_row, "score", "plan", "plan_with_noise")),
    Fault("a candidate leaks into the others", "exact", nodes(leaking)),
    Fault("goal and start swapped", "exact", nodes(goal_for_start, "score")),
    Fault("elites are the dearest", "exact", nodes(dearest)),
    Fault("the same noise in every iteration", "exact", nodes(first_noise)),
    Fault("the same noise in every plan", "exact", nodes(first_plan, "plan")),
    Fault("no bounds", "exact", nodes(no_bounds, "plan", "plan_with_noise")),
    Fault("the cost of the step before", "model", with_score(lambda s, m, z, g, c: s(m, z, g, c[:, :-1]))),
    Fault("actions shuffled in time", "model", with_score(lambda s, m, z, g, c: s(m, z, g, c.flip(1)))),
    Fault("costs one candidate further on", "model", with_score(lambda s, *given: torch.roll(s(*given), 1))),
    Fault("costs not finished", "model", with_score(lambda s, *given: s(*given).clamp(max=0.5))),
    Fault("a window one too short", "model", history_of(2)),
    Fault("a quantized layer's scale twice too large", "quantized",
          weights(**{"predictor__blocks__1__mlp__0__weight/scale": lambda w: 2 * w}), "w8a8"),
    Fault("scales of the next channel", "quantized",
          weights(**{"mlp__2__weight/scale": lambda w: np.roll(w, 1, -1)}), "w8a8"),
    Fault("integers that wrap round", "quantized",
          weights(**{"/i8": lambda w: np.where(np.abs(w.astype(int)) > 96, -w, w)}), "w8a8"),
)  # fmt: skip

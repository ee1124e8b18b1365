"""What each method of quantization adds over rounding to the nearest, on trained weights: torch plays the bundle.

    python benchmarks/methods.py [--model reference/puck] [--contexts 24] [--json FILE] [--no-record]

Products that `w8a8` names are computed from numbers rounded as a method says; those it holds in bf16 are so in every
row. Each row is judged on the same bank: all candidates of the full model's own searches from held-out contexts. The
share of elites that stay, the least rank correlation of costs, and the error of costs over their spread. Methods are
calibrated on candidates of other searches. Takes some minutes; figures go to `benchmarks/results/<machine>.jsonl`.

symmetric       a row of activations in steps of its largest magnitude / 127
range           in steps of its range (with 0) / 254: what `product_i8` does
centred         channels of activations shifted by their mean, which weights and bias make up for
scaled          and divided by a power of their deviation over the norm of their weights; the power is chosen for each
                product (SmoothQuant, Xiao et al., 2023; for 4 bits what AWQ does, Lin et al., 2024)
clipped         steps of weights shrunk where that loses least, by second moments of channels (as in AWQ)
compensated     GPTQ (Frantar et al., 2023), as in `edgewm/quantize/compensate.py`
bias            the mean error of each output taken off (Nagel et al., 2019)
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from recording import add_flags, finish
from torch import Tensor

from edgewm import models, statistics
from edgewm.build import capture
from edgewm.judge.sides import elites_of, search
from edgewm.judge.sources import source_of
from edgewm.passes import EXACT, run
from edgewm.passes.quantize_products import levels_of
from edgewm.quantize import recipe_of
from edgewm.quantize.compensate import compensated, rounded

CALIBRATION, SEED = 8, 1
POWERS = np.linspace(0, 1, 9)
SHRINKS = np.linspace(0.55, 1, 10)
ROWS, STRIDE = 4096, 8  # of a product's inputs that methods look at; of those seen, one in so many is kept till then


@dataclass(frozen=True)
class Method:
    """`activations` is exact, bf16, symmetric or range; `bits` and `size` are the weights' (size 0: all inputs share a
    step); the others as the module says."""

    name: str
    activations: str = "range"
    bits: int = 8
    size: int = 0
    centred: bool = False
    scaled: bool = False
    clipped: bool = False
    compensated: bool = False
    bias: bool = False


W8A8, W4A16, W4A8 = Method("w8a8"), Method("w4a16", "bf16", 4, 64), Method("w4a8", bits=4)
METHODS = [
    replace(W8A8, name="bf16", activations="bf16", bits=0),
    replace(W8A8, name="w8a8 symmetric", activations="symmetric"),
    replace(W8A8, name="w8a8 range"),
    replace(W8A8, name="a8 range, weights exact", bits=0),
    replace(W8A8, name="w8, activations exact", activations="exact"),
    replace(W8A8, name="w8 compensated, activations exact", activations="exact", compensated=True),
    replace(W8A8, name="w8a8 range, compensated", compensated=True),
    replace(W8A8, name="w8a8 range, scaled", scaled=True),
    replace(W8A8, name="w8a8 range, compensated, centred, scaled", compensated=True, centred=True, scaled=True),
    replace(W8A8, name="w8a8 range, compensated, bias", compensated=True, bias=True),
    replace(W4A16, name="w4a16_g64 nearest"),
    replace(W4A16, name="w4a16_g64 clipped", clipped=True),
    replace(W4A16, name="w4a16_g64 scaled", scaled=True),
    replace(W4A16, name="w4a16_g64 compensated", compensated=True),
    replace(W4A16, name="w4a16_g64 compensated, clipped", compensated=True, clipped=True),
    replace(W4A16, name="w4a16_g64 compensated, scaled", compensated=True, scaled=True),
    replace(W4A16, name="w4a16_g32 compensated", size=32, compensated=True),
    replace(W4A16, name="w4a16_g128 compensated", size=128, compensated=True),
    replace(W4A8, name="w4a8 nearest"),
    replace(W4A8, name="w4a8 compensated", compensated=True),
    replace(W4A8, name="w4a8 compensated, bias", compensated=True, bias=True),
]


def rounding(kind: str) -> Callable[[Tensor], Tensor]:
    """What becomes of rows of activations (..., K)."""

    def in_steps(x: Tensor, middle: Tensor, half: Tensor) -> Tensor:
        step = half.clamp_min(2.0**-100) / 127
        return ((x - middle) / step).round() * step + middle

    def by_range(x: Tensor) -> Tensor:
        low, high = x.amin(-1, keepdim=True).clamp_max(0), x.amax(-1, keepdim=True).clamp_min(0)
        return in_steps(x, (low + high) / 2, (high - low) / 2)

    return {
        "exact": lambda x: x,
        "bf16": lambda x: x.bfloat16().float(),
        "symmetric": lambda x: in_steps(x, torch.zeros(()), x.abs().amax(-1, keepdim=True)),
        "range": by_range,
    }[kind]


def levels(w: np.ndarray, moments: np.ndarray, method: Method) -> np.ndarray:
    """Weights (K, N) as they are held, back in f32."""
    if not method.bits:
        return w if method.activations != "bf16" else torch.from_numpy(w).bfloat16().float().numpy()
    size = np.gcd(method.size or len(w), len(w))
    low, high = (-127, 127) if method.bits == 8 else (-8, 7)
    held, step = levels_of(w, moments if method.compensated else None, method.bits, size)
    if method.clipped:
        of_channel, shape = np.diag(moments)[:, None], (len(w) // size, size, w.shape[1])
        steps = np.broadcast_to(step, w.shape)
        lost = [((rounded(w, steps * f, low, high) * steps * f - w) ** 2 * of_channel).reshape(shape).sum(1)
                for f in SHRINKS]  # fmt: skip
        best = SHRINKS[np.argmin(lost, 0)]
        step = steps * np.repeat(best, size, 0).astype(np.float32)
        held = compensated(w, step, low, high, moments) if method.compensated else rounded(w, step, low, high)
    return (held * step).astype(np.float32)


def made(layer: Any, seen: np.ndarray, method: Method) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
    """What a linear layer becomes: how its inputs are rounded, weight (N, K), bias (N,)."""
    w, kept = layer.weight.detach().numpy().T.copy(), rounding(method.activations)
    middle = seen.mean(0) if method.centred else np.zeros(len(w), np.float32)
    scale = np.ones(len(w), np.float32)
    if method.scaled:
        wide, heavy = seen.std(0) + 1e-6, np.linalg.norm(w, axis=1) + 1e-6
        tried = [(wide**p / heavy ** (1 - p)) if p else np.ones_like(scale) for p in POWERS]
        tried = [(s / np.exp(np.log(s).mean())).astype(np.float32) for s in tried]
        few, plain = seen[::8] - middle, replace(method, compensated=False)

        def lost(s: np.ndarray) -> float:
            found = kept(torch.from_numpy(few / s)).numpy() @ levels(w * s[:, None], np.eye(len(w)), plain)
            return float(np.square(found - few @ w).mean())

        scale = min(tried, key=lost)
    x, held = (seen - middle) / scale, w * scale[:, None]
    read = kept(torch.from_numpy(x)).numpy()
    moments = read.T.astype(np.float64) @ read
    new = levels(held, moments, method)
    bias = (layer.bias.detach().numpy() if layer.bias is not None else 0) + middle @ w
    if method.bias:
        bias = bias + (x @ held - read @ new).mean(0)
    shift, divisor = torch.from_numpy(middle), torch.from_numpy(scale)
    return lambda v: kept((v - shift) / divisor), torch.from_numpy(new.T.copy()), torch.from_numpy(bias).float()


@contextlib.contextmanager
def replaced(layers: dict[str, Any], found: dict[str, tuple]) -> Iterator[None]:
    """The model with these layers in the place of its own."""
    own = {name: (layer.weight.data, layer.bias.data) for name, layer in layers.items()}
    hooks = []
    for name, (kept, weight, bias) in found.items():
        layers[name].weight.data, layers[name].bias.data = weight, bias
        hooks.append(layers[name].register_forward_pre_hook(lambda _, given, kept=kept: (kept(given[0]),)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for name, layer in layers.items():
            layer.weight.data, layer.bias.data = own[name]


class Bench:
    """A trained model, what its searches looked at, and what each product was given by others of them."""

    def __init__(self, name: str, contexts: int):
        self.model = models.load(name)
        self.model.torch.eval()
        self.planner = self.model.planner
        named = recipe_of(run(capture(name, {}, None, None)[0], EXACT), "w8a8")
        recipe = {n.partition("[")[0]: form for n, form in named.items()}  # some products are with a part of a weight
        modules = dict(self.model.torch.named_modules())
        self.layers = {n: modules[n.removesuffix(".weight")] for n in recipe}
        self.narrow = {n for n, form in recipe.items() if form == "bf16"}
        self.seen: dict[str, list[np.ndarray]] = {n: [] for n in recipe}

        def keep(name: str, x: Tensor) -> None:
            self.seen[name].append(x.reshape(-1, x.shape[-1])[::STRIDE].clone())

        hooks = [
            layer.register_forward_pre_hook(lambda _, given, n=n: keep(n, given[0])) for n, layer in self.layers.items()
        ]
        list(self.searches(name, CALIBRATION, SEED))
        for hook in hooks:
            hook.remove()
        rng = np.random.default_rng(SEED)
        for n, parts in self.seen.items():
            rows = torch.cat(parts).numpy()
            self.seen[n] = rows[rng.permutation(len(rows))[:ROWS]]
        self.bank = list(self.searches(name, contexts, 0))

    @torch.inference_mode()
    def score(self, z: Tensor, goal: Tensor, candidates: np.ndarray) -> np.ndarray:
        return self.model.score(self.model.torch, z, goal, torch.from_numpy(candidates).float()).numpy()

    def searches(self, name: str, count: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Any]]:
        rng, p = np.random.default_rng([seed, count]), self.planner
        if p.history > 1:
            raise SystemExit("a model that plans from several frames is not handled here")
        for pair in source_of(name, self.model).contexts(count, seed):
            with torch.inference_mode():
                z, goal = (
                    self.model.encode(self.model.torch, *(torch.from_numpy(np.asarray(o[port.name])).reshape(port.shape)
                                                          for port in self.model.ports_of("observation")))
                    for o in pair
                )  # fmt: skip
            noise = rng.standard_normal((p.iterations, p.samples, p.horizon, self.model.action_dim), np.float32)
            yield z, goal, search(lambda c, z=z, goal=goal: self.score(z, goal, c), p, noise)

    def row(self, method: Method) -> dict[str, Any]:
        bf16 = replace(METHODS[0], name="")
        found = {n: made(self.layers[n], self.seen[n], bf16 if n in self.narrow else method) for n in self.layers}
        with replaced(self.layers, found):
            costs = [np.stack([self.score(z, goal, c) for c in s.candidates]) for z, goal, s in self.bank]
        full = [s.costs for _, _, s in self.bank]
        shared = [self.overlap(f, c) for f, c in zip(full, costs, strict=True)]
        ranks = [statistics.spearman(f.ravel(), c.ravel()) for f, c in zip(full, costs, strict=True)]
        errors = [np.sqrt(np.square(c - f).mean()) / f.std() for f, c in zip(full, costs, strict=True)]
        return {
            "elite_overlap": float(np.mean(shared)),
            "standard_error": float(np.std(shared, ddof=1) / len(shared) ** 0.5),
            "spearman_min": float(min(ranks)),
            "cost_error": float(np.mean(errors)),
        }

    def overlap(self, full: np.ndarray, costs: np.ndarray) -> float:
        """The share of elites that stay, over all iterations (I, S)."""
        k = self.planner.elites
        return float(np.mean([len(np.intersect1d(elites_of(a, k), elites_of(b, k))) / k
                              for a, b in zip(full, costs, strict=True)]))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="reference/puck")
    parser.add_argument("--contexts", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    add_flags(parser)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    bench, rows = Bench(given.model, given.contexts), []
    command = f"python benchmarks/methods.py --model {given.model} --contexts {given.contexts}"
    for method in METHODS:
        row = {"name": f"{given.model}: {method.name}", **bench.row(method)}
        print(f"{method.name:44s} elites {row['elite_overlap']:.4f} ± {row['standard_error']:.4f}  "
              f"spearman {row['spearman_min']:.5f}  cost error {row['cost_error']:.4f}", flush=True)  # fmt: skip
        rows.append({"table": "methods", **row, "command": command})
    finish(rows, given)


if __name__ == "__main__":
    main()

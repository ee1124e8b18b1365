"""PyTorch beside edgewm on the same GPU: each part in a process of its own, since a compiler may not come to an end.

    python benchmarks/gpu_torch.py PART --out FILE [--device cuda] [--rounds 15]

Every row is written to FILE (a JSON object a line) as soon as it is measured: what was not reached is missing, nothing
else. The plan is stable-worldmodel's search with its noise drawn on the device; products and attention are the modules
of `gpu_cases.py`, replayed as CUDA graphs, so that no launch from Python is in their times.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import gpu_cases
import torch
from gpu_build import PUBLISHED, lewm
from step import planner_of
from torch import Tensor, nn
from torch.nn import functional as F
from works import iteration

from edgewm.models import Model
from edgewm.program import Planner

PARTS = ("ceilings", "eager", "products", "attention", "reduce-overhead", "max-autotune", "compiled-products")
REPEATS = 20  # of a product in one graph
SMALL = {"image_px": 28, "depth": 1, "num_hidden_layers": 1}  # of LeWM
SIDE = 8192  # of a matrix product that fills any GPU
KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16, "w8a8": torch.int8}
Row = dict[str, Any]


class Clock:
    """Times of a device: replayed graphs and events where there is CUDA, a plain loop where there is none (tests)."""

    def __init__(self, device: str, rounds: int):
        self.is_cuda, self.rounds = device == "cuda", rounds

    def each_us(self, step: Callable[[], object]) -> float:
        """us of one step of REPEATS in a graph, the median of rounds."""
        if not self.is_cuda:
            return self.whole_ms(step) * 1e3
        for _ in range(3):
            step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(REPEATS):
                step()
        return self.whole_ms(graph.replay) * 1e3 / REPEATS

    def whole_ms(self, step: Callable[[], object], rounds: int | None = None) -> float:
        """ms from the call to the end of its work on the device, the median of rounds."""
        step()
        found = []
        for _ in range(rounds or self.rounds):
            self.wait()
            began = time.perf_counter()
            step()
            self.wait()
            found.append(time.perf_counter() - began)
        return median(found) * 1e3

    def wait(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()


# ---------------------------------------------------------------------------------------------- plans


def plan_of(model: Model, planner: Planner, bf16: bool, device: str, mode: str | None) -> Callable[[], Tensor]:
    """Pixels to actions: both encodings and all iterations. `mode` of torch.compile, None: eager."""
    module = model.torch.to(device)
    pixels = torch.randint(0, 256, model.ports_of("observation")[0].shape, dtype=torch.uint8, device=device)

    def encode(seen: Tensor) -> Tensor:
        return model.encode(module, seen)

    def refit(drawn: Tensor, mean: Tensor, std: Tensor, z: Tensor, goal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return iteration(model, planner, module, drawn, mean, std, z, goal)

    if mode is not None:
        encode, refit = (torch.compile(f, mode=mode, dynamic=False) for f in (encode, refit))

    def plan() -> Tensor:
        cast = torch.autocast(device, torch.bfloat16) if bf16 else nullcontext()
        with torch.inference_mode(), cast:
            z, goal = encode(pixels).clone(), encode(pixels).clone()
            mean = torch.zeros(planner.horizon, model.action_dim, device=device)
            std = torch.full_like(mean, planner.var_scale)
            for _ in range(planner.iterations):
                drawn = torch.randn(planner.samples, *mean.shape, device=device)
                mean, std, _ = (t.clone() for t in refit(drawn, mean, std, z, goal))  # graphs reuse their outputs
            return mean

    return plan


def plan_rows(clock: Clock, model: Model, planner: Planner, device: str, mode: str | None) -> Iterator[Row]:
    for bf16 in (False, True) if mode != "max-autotune" else (True,):
        began = time.perf_counter()
        plan = plan_of(model, planner, bf16, device, mode)
        plan()
        clock.wait()
        ready_s = time.perf_counter() - began
        what = f"torch {'eager' if mode is None else f'compile {mode}'} {'autocast bf16' if bf16 else 'fp32'}"
        ms = clock.whole_ms(plan, max(clock.rounds // 3, 1))
        yield {"table": "gpu-peers-plan", "name": what, "ms": ms, "ready_s": ready_s}


# ---------------------------------------------------------------------------------------------- cases


class Int8(nn.Module):
    """A layer's product by torch._int_mm (cuBLASLt): rows quantized as they come, a scale for each output."""

    def __init__(self, layer: gpu_cases.Layer):
        super().__init__()
        scale = layer.weight.abs().amax(1) / 127
        self.layer, self.scale = layer, scale
        self.weight = torch.round(layer.weight / scale[:, None]).to(torch.int8).t()  # columns are contiguous

    def forward(self, x: Tensor, *residual: Tensor) -> Tensor:
        x = self.layer.before(x)
        rows = x.reshape(-1, x.shape[-1])
        step = rows.abs().amax(1, keepdim=True) / 127
        y = torch._int_mm(torch.round(rows / step).to(torch.int8), self.weight).to(torch.float32) * step * self.scale
        y = (y + self.layer.bias).reshape(*x.shape[:-1], -1)
        if self.layer.after_ == "gelu":
            return F.gelu(y)
        return y + residual[0] if residual else y


def module_of(case: gpu_cases.Case, precision: str, device: str) -> tuple[nn.Module, list[Tensor]]:
    """The case in one precision on the device, and its inputs; bf16 is bf16 throughout, as torch is fastest."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    inputs = [torch.from_numpy(x).to(device, kind) for x in gpu_cases.inputs_of(case).values()]
    module = case.module.to(device)
    if isinstance(module, gpu_cases.Windows):  # torch's is timed from queries, keys and values on too
        *lead, tokens, depth = inputs[0].shape
        inputs = [torch.randn(*lead, module.heads, tokens, depth, device=device, dtype=kind) for _ in range(3)]
        module = gpu_cases.Attention(module.frame)
    if precision == "w8a8":
        return Int8(module).to(device), inputs
    return (module.to(kind) if precision == "bf16" else module), inputs


def case_rows(
    clock: Clock, cases: Sequence[gpu_cases.Case], device: str, kinds: tuple[str, ...], mode: str | None
) -> Iterator[Row]:
    """Each case in fp32, then int8, then bf16, which changes the module."""
    for case in cases:
        if case.kind not in kinds:
            continue
        for precision in ("fp32", "w8a8", "bf16"):
            if precision == "w8a8" and not fits_int_mm(case, device):
                continue
            module, inputs = module_of(case, precision, device)
            call = module if mode is None else torch.compile(module, mode=mode, dynamic=False)
            with torch.inference_mode():
                us = clock.each_us(lambda call=call, inputs=inputs: call(*inputs))
            how = "eager" if mode is None else "compile"
            row = {"table": "gpu-peers-cases", "name": f"{case.name} {precision} torch {how}", "us": us}
            yield row | {"tflops": case.flops / us / 1e6 if case.flops else None}


def fits_int_mm(case: gpu_cases.Case, device: str) -> bool:
    """torch._int_mm on CUDA wants more than 16 rows, and inputs and outputs in eights."""
    if case.kind != "product":
        return False
    outputs, inputs = case.module.weight.shape
    return device != "cuda" or (inputs % 8 == 0 and outputs % 8 == 0)


def bare_rows(clock: Clock, cases: Sequence[gpu_cases.Case], device: str) -> Iterator[Row]:
    """The product of each case alone, without its neighbours."""
    for case in cases:
        if case.kind != "product":
            continue
        outputs, inputs = case.module.weight.shape
        rows = case.flops // (2 * inputs * outputs)
        for precision, kind in KINDS.items():
            if kind == torch.int8 and not fits_int_mm(case, device):
                continue
            drawn = [torch.randint(-100, 100, s, device=device).to(kind) for s in ((rows, inputs), (outputs, inputs))]
            call = torch._int_mm if kind == torch.int8 else torch.matmul
            us = clock.each_us(lambda call=call, drawn=drawn: call(drawn[0], drawn[1].t()))
            name = f"{case.name} {precision} torch matmul alone"
            yield {"table": "gpu-peers-cases", "name": name, "us": us, "tflops": case.flops / us / 1e6}


# ---------------------------------------------------------------------------------------------- ceilings


def ceiling_rows(clock: Clock, device: str, side: int) -> Iterator[Row]:
    """What torch's libraries reach on square matrices and a copy of memory: on Hopper by wgmma, which sm_87 has not."""
    found: Row = {"table": "gpu-ceilings", "name": "torch's libraries"}
    for kind, key in ((torch.float32, "fp32_gflops"), (torch.bfloat16, "bf16_gflops"), (torch.int8, "int8_gops")):
        a, b = (torch.randint(-100, 100, (side, side), device=device).to(kind) for _ in range(2))
        call = torch._int_mm if kind == torch.int8 else torch.matmul
        us = clock.each_us(lambda call=call, a=a, b=b: call(a, b.t()))
        found[key] = 2 * side**3 / us / 1e3
    x = torch.rand(side * side * 4, device=device)
    y = torch.empty_like(x)
    found["dram_gbps"] = 2 * x.nbytes / clock.each_us(lambda: y.copy_(x)) / 1e3
    yield found


def rows_of(part: str, clock: Clock, device: str, small: bool = False) -> Iterator[Row]:
    if part == "ceilings":
        yield from ceiling_rows(clock, device, 64 if small else SIDE)
    elif part in ("eager", "reduce-overhead", "max-autotune"):
        with torch.device("cpu"):
            model = lewm(**(SMALL if small else {}))
        samples, iterations, horizon = (4, 1, 1) if small else PUBLISHED
        planner = planner_of(model, samples, horizon, iterations)
        yield from plan_rows(clock, model, planner, device, None if part == "eager" else part)
    else:
        with torch.device("cpu"):
            cases = gpu_cases.cases(small)
        if part == "products":
            yield from bare_rows(clock, cases, device)
        kinds = ("attention",) if part == "attention" else ("product", "rows")
        mode = "max-autotune-no-cudagraphs" if part == "compiled-products" else None
        yield from case_rows(clock, cases, device, kinds, mode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda", help="default cuda; cpu sees that everything works")
    parser.add_argument("--rounds", type=int, default=15, help="that a median is of; default 15")
    parser.add_argument("--small", action="store_true", help="small shapes, which show nothing of speed")
    given = parser.parse_args()
    torch.manual_seed(0)
    torch.set_default_device(given.device)
    with given.out.open("a") as out:
        for row in rows_of(given.part, Clock(given.device, given.rounds), given.device, given.small):
            out.write(json.dumps(row) + "\n")
            out.flush()


if __name__ == "__main__":
    main()

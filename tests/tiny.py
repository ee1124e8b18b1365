"""LeWM of a few thousand seeded random weights, for tests that build a bundle: `edgewm build tiny:lewm`.

Its 40 candidates fill no tile of any instruction set and need more than one of each: padding and threads are at work.
"""

from __future__ import annotations

import functools
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from fixtures_models import seeded
from torch import Tensor
from torch_world.models import LeWM
from torch_world.nn import CLSEncoder

from edgewm.build import build, capture
from edgewm.models import Model, torch_world
from edgewm.passes import EXACT, LOWERING, run
from edgewm.program import Planner, Port, Program
from edgewm.quantize import recipe_of

FRESH_NS = 1_000_000_000  # an emulator is slow
PLANNER = Planner(
    samples=40, iterations=2, elites=5, horizon=3, action_block=2, commit_steps=2, first_candidate_is_mean=False,
    low=-1.0, high=1.0,
)  # fmt: skip
SPEED = Port("speed", "observation", (1, 2), unit="m/s", low=-2.0, high=2.0, max_age_ns=FRESH_NS)
ACTION = Port("action", "action", (2,), unit="m/s", low=-1.0, high=1.0, control="velocity", safe=(0.0, 0.0))


def lewm() -> Model:
    """torch-world's LeWM at width 16, its own speed beside 16 px frames of 4 patches; 1 block, window 2; a safe action.

    Some products are over 72, 66 and 68 inputs: w8a8 leaves short ones alone, and these end with and without a tail.
    """
    encoder = CLSEncoder(16, 8, 16, depth=1, num_heads=2, mlp_ratio=2.0)
    sizes = {"embed_dim": 16, "history": 2, "depth": 1, "num_heads": 3, "head_dim": 24, "mlp_dim": 66, "proj_dim": 68}
    module = seeded(LeWM(encoder, action_dim=4, **sizes))
    pixels = {"mean": (0.5, 0.4, 0.6), "std": (0.2, 0.3, 0.25)}
    model = torch_world.lewm(module, (16, 16), 4, PLANNER, ACTION, **pixels, rate_hz=50.0)
    camera, goal, action = model.ports
    ports = (replace(camera, max_age_ns=FRESH_NS), SPEED, goal, replace(SPEED, name="goal_speed", kind="goal"), action)

    def encode(m: torch.nn.Module, frame: Tensor, speed: Tensor) -> Tensor:
        return model.encode(m, frame) + speed.unsqueeze(1).expand(1, 8, 2).reshape(1, 16)

    return replace(model, ports=ports, encode=encode)


def careless() -> Model:
    """The same without a safe action."""
    model = lewm()
    return replace(model, ports=(*model.ports[:-1], replace(ACTION, safe=())))


@functools.cache
def bundle(target: str, precision: str) -> Path:
    """A whole bundle as the verb builds it, once in a process."""
    out = Path(tempfile.mkdtemp(prefix="edgewm-tiny-")) / "out"
    build("tiny:lewm", target=target, precision=precision, out=out)
    return out


@functools.cache
def exact() -> Program:
    return run(capture("tiny:lewm", {}, None, None)[0], EXACT)


@functools.cache
def lowered(precision: str = "fp32") -> Program:
    """What `bundle` compiles, before it is given to a machine."""
    program = exact()
    return run(program.with_(recipe=recipe_of(program, precision)), LOWERING)

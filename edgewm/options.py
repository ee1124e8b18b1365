"""What the command line and the functions behind it both need to know of an option."""

from __future__ import annotations

import re
from collections.abc import Callable

SUITES = ("plan", "physics", "causality", "horizon", "general", "closed-loop")
PRECISIONS = ("fp32", "bf16", "bf16_all", "w8a8", "w8a8_all")  # recipes by name; with _all the encoder's products too
FURTHER = ("fp16", "fp16_all", "w8a16", "fp8")  # recipes that save no time on a CPU: no student is trained for them
AUTO = "auto"  # the recipe is chosen by planning and by the clock
OWN_RECIPE = "recipe"  # what a bundle calls the precision of a recipe out of a file, and the recipe
# recipes that need something to plan from
CALIBRATED = ("w8a8_smooth", "w8a8_static", "w4a8", "w4a16_g32", "w4a16_g64", "w4a16_g128")
RECIPES = (*PRECISIONS, *FURTHER, *CALIBRATED)
# Classes of values that candidates leave between calls; a recipe may hold each in bf16: `w8a8+hidden`.
VALUES = ("hidden", "attention", "latents")
WITH = "+"  # ahead of each
TRAINED = (*PRECISIONS, "w4a8", "w4a16_g32", "w4a16_g64", "w4a16_g128")  # recipes that a student is trained for
PLACES = (AUTO, "cpu", "gpu")  # what plans
NATIVE = "native"
BACKENDS = (NATIVE, "onnxruntime", "tensorrt")  # edgewm's own kernels, or a file in edgewm/backends
PRESETS = ("strict", "default", "explore", "student")  # of the judge's gates
SLO = re.compile(r"(?P<which>p50|p99|p99\.?9|max)=(?P<value>\d+(\.\d+)?)(?P<unit>us|ms|s)")

Progress = Callable[[str, float], None]  # what is being done, and the share that is done, 0 to 1


def is_named(precision: str) -> bool:
    """Whether it is a recipe's name, with classes of values or without; else it is a file."""
    return precision.partition(WITH)[0] in RECIPES


def part(progress: Progress | None, start: float, share: float, name: str = "") -> Progress | None:
    """The progress of one step as `share` of a whole that begins it at `start`."""
    if progress is None:
        return None
    return lambda stage, done: progress(f"{name}: {stage}" if name else stage, start + share * done)

"""The pipeline: one ordered tuple, read from top to bottom; each step is `Program -> Program`.

Exact steps change no value beyond rounding. `run` verifies the program before and after every step, measures what the
step changed and writes the log; the steps themselves know nothing of that.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import EdgewmError
from ..garbage import uncollected
from ..ops import graph_flops
from ..program import LogLine, Program, walk_graphs
from ..spec import verify
from .delay_expands import delay_expands
from .drop_single_keys import drop_single_keys
from .fold_constants import fold_constants
from .fuse_kernels import fuse_kernels
from .hoist_invariants import hoist_invariants
from .lift_reshapes import lift_reshapes
from .merge_products import merge_products
from .narrow_values import narrow_values
from .prune_rows import prune_rows
from .quantize_products import quantize_products
from .reuse_prefixes import reuse_prefixes
from .share_rows import share_rows

Step = Callable[[Program], Program]

EXACT: tuple[Step, ...] = (
    lift_reshapes,  # products over all rows at once, whatever batch dimensions upstream merged
    delay_expands,  # what all candidates share, once for all of them
    share_rows,  # what depends on one action alone, once for each action and not for each window it stands in
    fold_constants,  # masks, positions, scales and random-number counters become weights
    reuse_prefixes,  # a growing window's earlier rows are computed once
    drop_single_keys,  # one frame's attention to itself
    hoist_invariants,  # what every round of the planner would compute alike
    prune_rows,  # what nobody reads: all but the last token of the last block, all but the CLS token of an encoder's
)
LOWERING: tuple[Step, ...] = (
    quantize_products,  # by the recipe; this step and the last one change values
    merge_products,  # products of one value in one: columns side by side
    fuse_kernels,  # cores from kernels/, neighbours absorbed
    narrow_values,  # what is left between calls, by the recipe
)
PIPELINE: tuple[Step, ...] = EXACT + LOWERING


@uncollected()
def run(program: Program, steps: Sequence[Step] = PIPELINE) -> Program:
    """The program after `steps`, with one log line each.

    Raises BrokenProgram, naming node, rule and step, for a step that breaks a rule. Whatever but an EdgewmError leaves
    a step carries `last_program`: the path of a text of the program that went into it.
    """
    verify(program, "capture")
    nodes, weight_bytes, flops = _nodes(program), _bytes(program), _flops(program)
    for step in steps:
        began = time.monotonic()
        try:
            after = step(program)
            verify(after, step.__name__, program.weights)
        except EdgewmError:
            raise
        except Exception as fault:
            fault.last_program = _saved(program)  # type: ignore[attr-defined]
            raise
        line = LogLine(
            step=step.__name__,
            nodes=(nodes, nodes := _nodes(after)),
            weight_bytes=(weight_bytes, weight_bytes := _bytes(after)),
            flops=(flops, flops := _flops(after)),
            seconds=time.monotonic() - began,
        )
        program = after.with_(log=(*program.log, line))
    return program


def _saved(program: Program) -> Path:
    """A file with the program as `edgewm show` prints it."""
    from ..show import program_text

    stage = program.log[-1].step if program.log else "capture"
    handle, name = tempfile.mkstemp(prefix="edgewm-last-program-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(program_text(program, stage, kernels=True) + "\n")
    return Path(name)


def _nodes(program: Program) -> int:
    return sum(len(g.order()) for entry in program.entries.values() for g in walk_graphs(entry))


def _bytes(program: Program) -> int:
    read = {name for entry in program.entries.values() for name in entry.weights()}
    return sum(program.weights[name].nbytes for name in read)


def _flops(program: Program) -> int:
    entry = program.entries.get("plan") or next(iter(program.entries.values()))
    return graph_flops(entry)

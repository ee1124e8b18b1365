"""Golden answers of a backend's bundle: what each graph gives by the oracle in float64, and how far off it may be.

In float32 that is what rounding can do on the graph's longest path. In eight bits a value at the edge of two levels
may fall to either, and then errs by a step where quantizing errs by up to half of one everywhere: so an answer may be
off by what quantizing costs it, which is measured on this very input against the exact program.

A round's next state is not recorded: elites may part at a near tie. It is checked against the planner's own refit of
the costs that the round itself gave.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import numpy as np

from .. import expr as e
from .. import interp
from ..errors import EdgewmError
from ..golden import example_inputs
from ..iteration import NOISE
from ..judge.noise import of_round
from ..ops import NUMPY
from ..planner import METHODS, plan_weights
from ..program import Graph, Planner, Program
from ..rounding import UNIT_ROUNDOFF, rounding_steps
from .host import BEGIN, ENCODE, ENTRY, GIVEN, ITERATE, NEXT

Array = np.ndarray
Arrays = Mapping[str, Array]
COSTS = "costs"
IN, OUT, WITHIN = "in", "out", "within"  # parts of a name in the file


def record(program: Program, exact: Program, graphs: Mapping[str, Graph], of_exact: Mapping[str, Graph], seed: int
) -> bytes:  # fmt: skip
    """`golden.npz` of the program's `graphs`; `exact` and `of_exact` are the same before a recipe was applied."""
    found: dict[str, Array] = {}
    given = example_inputs(program, GIVEN, seed)
    for name, graph in graphs.items():
        if name == ITERATE:
            width = graph.inputs()["mean"].shape[1]
            inputs = {n.removeprefix(BEGIN): found[f"{ENCODE}/{OUT}/{n}"] for n in graphs[ENCODE].outputs}
            inputs |= {NOISE: of_round(program.planner, width, seed, 0, 0), "counter": np.asarray(0, np.uint32)}
        else:
            inputs = given if name == ENCODE else example_inputs(program, name.removeprefix(ENTRY), seed)
        inputs = {n: inputs[n] for n in graph.inputs()}
        outputs = [COSTS] if name == ITERATE else list(graph.outputs)
        answers = interp.run(_only(graph, outputs), inputs, program.weights, real=True)
        real = interp.run(_only(of_exact[name], outputs), inputs, exact.weights, real=True)
        found |= {f"{name}/{IN}/{n}": a for n, a in inputs.items()}
        for output in outputs:
            answer, wanted = np.asarray(answers[output]), np.asarray(real[output])
            rounding = rounding_steps(_only(graph, [output])) * UNIT_ROUNDOFF * np.abs(answer).max()
            found[f"{name}/{OUT}/{output}"] = answer.astype(NUMPY[graph.outputs[output].dtype])
            found[f"{name}/{WITHIN}/{output}"] = np.asarray(rounding + np.abs(answer - wanted).max())
    file = io.BytesIO()
    np.savez(file, **found)
    return file.getvalue()


def _only(graph: Graph, outputs: list[str]) -> Graph:
    return Graph({name: graph.outputs[name] for name in outputs})


def verify(
    name: str, call: Callable[[Arrays], Arrays], golden: Arrays, planner: Planner, where: str
) -> dict[str, float]:
    """Run one graph on its recorded inputs; the error of each output over what is allowed.

    EdgewmError, naming the output, where one is further off than that or is not finite, or where a round's next state
    is not the planner's refit of its costs.
    """
    inputs = {key.split("/")[2]: golden[key] for key in golden if key.startswith(f"{name}/{IN}/")}
    found = call(inputs)
    shares = {}
    for key in (key for key in golden if key.startswith(f"{name}/{OUT}/")):
        output = key.split("/")[2]
        allowed = float(golden[f"{name}/{WITHIN}/{output}"])
        shares[output] = _held(output, found[output], golden[key], allowed, where)
    if name == ITERATE:
        shares |= _refit(found, inputs, planner, where)
    return shares


def _held(output: str, found: Array, wanted: Array, allowed: float, where: str) -> float:
    off = float(np.max(np.abs(np.asarray(found, np.float64) - wanted), initial=0.0))
    if not off <= allowed:  # nan, too
        raise EdgewmError(
            f"{output} is off by {off:.3g} from its golden answer, {allowed:.3g} is allowed", where,
            "what runs here is not the program that was built: do not use it; build the bundle and its engines again",
        )
    return off / allowed if allowed else 0.0


def _refit(found: Arrays, inputs: Arrays, planner: Planner, where: str) -> dict[str, float]:
    """What the planner's method makes of these costs, in place of the graph that gave them."""
    graph = refit(planner, inputs[NOISE].shape)
    names = {name: inputs[name] if name in inputs else found[name] for name in graph.inputs()}
    wanted = interp.run(graph, names, plan_weights(planner), real=True)
    largest = np.abs(inputs["mean"]).max() + np.abs(inputs[NOISE]).max() * np.abs(inputs["std"]).max()
    shares = {}
    for output, value in wanted.items():
        if output not in found:
            continue
        scale = max(float(np.abs(found[COSTS]).max()) if output == f"{NEXT}cost" else float(largest), 1.0)
        allowed = 0.0 if value.dtype.kind in "iu" else rounding_steps(_only(graph, [output])) * UNIT_ROUNDOFF * scale
        shares[output] = _held(output, found[output], value, allowed, where)
    return shares


def refit(planner: Planner, shape: tuple[int, ...]) -> Graph:
    """A round from `costs`, without the model: `next_<carry>` from the carries and `noise` of `shape`."""
    warm = e.input("warm_mean", shape[1:])
    start = METHODS[planner.kind].start(planner, warm)
    carried = {name: e.input(name, node.shape, node.dtype) for name, node in start.items()}
    costs = e.input(COSTS, shape[:1])
    made = METHODS[planner.kind].iterate(planner, carried, e.input(NOISE, shape), lambda candidates: costs)
    return Graph({f"{NEXT}{name}": node for name, node in made.items()})


def read(data: bytes) -> dict[str, Array]:
    """The arrays of `golden.npz` by name."""
    with np.load(io.BytesIO(data)) as file:
        return {name: file[name] for name in file.files}

"""The exact passes that know rollouts: same bits, fewer operations, and only where it is legal."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from edgewm import expr as e
from edgewm.interp import run as interp
from edgewm.ops import graph_flops
from edgewm.passes import EXACT, run
from edgewm.passes.reuse_prefixes import reuse_prefixes
from edgewm.program import Graph, Node, Program

SAMPLES, WIDTH, HEADS, HEAD, ACTION = 3, 8, 2, 4, 2


class Rollout:
    """A small action-conditioned causal predictor, rolled out from some frames over a window that grows and slides."""

    def __init__(self, horizon: int, window: int, causal: bool = True, shifting: bool = True, frames: int = 1):
        self.rng = np.random.default_rng(0)
        self.weights: dict[str, np.ndarray] = {}
        self.horizon, self.window, self.causal, self.shifting = horizon, window, causal, shifting
        self.frames = frames

    def weight(self, name: str, *shape: int) -> Node:
        if name not in self.weights:
            self.weights[name] = (self.rng.standard_normal(shape) * 0.3).astype(np.float32)
        return e.weight(name, shape)

    def predict(self, z: Node, actions: Node) -> Node:
        tokens = z.shape[1]
        x = e.add(z, e.narrow(self.weight("position", 1, self.window, WIDTH), 1, 0, tokens))
        for layer in range(2):
            scale = e.matmul(e.silu(actions), self.weight(f"{layer}.scale", ACTION, WIDTH))
            mean = e.mean(x, -1)
            h = e.mul(e.sub(x, mean), e.add(scale, 1.0))
            qkv = e.matmul(h, self.weight(f"{layer}.qkv", WIDTH, 3 * HEADS * HEAD))
            parts = e.permute(e.reshape(qkv, (SAMPLES, tokens, 3, HEADS, HEAD)), (2, 0, 3, 1, 4))
            q, k, v = (e.reshape(e.narrow(parts, 0, i, i + 1), (SAMPLES, HEADS, tokens, HEAD)) for i in range(3))
            scores = e.mul(e.matmul(q, e.permute(k, (0, 1, 3, 2))), 0.5)
            if self.causal:
                seen = e.less_equal(e.iota((tokens, tokens), 1), e.iota((tokens, tokens), 0))
                scores = e.select(seen, scores, float("-inf"))
            o = e.permute(e.matmul(e.softmax(scores, -1), v), (0, 2, 1, 3))
            o = e.matmul(
                e.reshape(o, (SAMPLES, tokens, HEADS * HEAD)), self.weight(f"{layer}.out", HEADS * HEAD, WIDTH)
            )
            x = e.add(x, o)
            x = e.add(
                x,
                e.matmul(
                    e.gelu(e.matmul(x, self.weight(f"{layer}.up", WIDTH, 16))), self.weight(f"{layer}.down", 16, WIDTH)
                ),
            )
        return e.narrow(x, 1, tokens - 1, tokens)

    def program(self) -> Program:
        frames, actions = self.frames, e.input("candidates", (SAMPLES, self.horizon, ACTION))
        context = e.expand(e.input("z", (1, frames, WIDTH)), (SAMPLES, frames, WIDTH))
        latents = [e.narrow(context, 1, t, t + 1) for t in range(frames)]
        if frames > 1:  # the same past for every candidate
            past = e.expand(e.input("past", (1, frames - 1, ACTION)), (SAMPLES, frames - 1, ACTION))
            actions = e.concat([past, actions], 1)
        for step in range(frames, frames + self.horizon):
            first = max(0, step - self.window) if self.shifting else 0
            latents.append(self.predict(e.concat(latents[first:step], 1), e.narrow(actions, 1, first, step)))
        cost = e.reduce_sum(e.mul(latents[-1], latents[-1]), -1)
        return Program({"score": Graph({"cost": e.reshape(cost, (SAMPLES,))})}, self.weights)


def inputs(program: Program) -> dict[str, np.ndarray]:
    """By name: a pass may leave an input unread."""
    leaves = program.entries["score"].inputs().items()
    return {n: np.random.default_rng(list(n.encode())).standard_normal(x.shape).astype(np.float32) for n, x in leaves}


def costs(program: Program) -> np.ndarray:
    return interp(program.entries["score"], inputs(program), program.weights)["cost"]


def flops(program: Program) -> int:
    return graph_flops(program.entries["score"])


def step(program: Program, name: str) -> tuple[int, int]:
    return next(line.flops for line in program.log if line.step == name)


@pytest.mark.parametrize(
    ("horizon", "window", "frames"),
    [(1, 3, 1), (2, 3, 1), (3, 3, 1), (5, 3, 1), (4, 2, 1), (3, 1, 1), (3, 3, 2), (4, 3, 3), (2, 2, 3), (3, 1, 2)],
)
def test_no_bit_changes_and_no_operation_is_added(horizon: int, window: int, frames: int) -> None:
    program = Rollout(horizon, window, frames=frames).program()
    exact = run(program, EXACT)
    assert np.array_equal(costs(program), costs(exact))
    assert flops(exact) <= flops(program)


def test_each_pass_pays_on_a_sliding_window() -> None:
    exact = run(Rollout(5, 3).program(), EXACT)
    for name in ("share_rows", "reuse_prefixes", "prune_rows"):
        before, after = step(exact, name)
        assert after < before, name


def test_a_growing_window_computes_each_token_once() -> None:
    """Without sliding, every token but the newest of each step is a prefix: products fall from 1+2+3+4 rows to 4."""
    program = Rollout(4, 4).program()
    exact = run(program, EXACT)
    rows = {
        n.shape[1]
        for n in exact.entries["score"].order()
        if n.op == "matmul" and n.sources[1].op == "weight" and n.shape[-1] == 16
    }
    assert rows == {1}
    assert flops(exact) < 0.45 * flops(program)


def rows_of_qkv(program: Program) -> list[tuple[int, int]]:
    """(candidates, rows) of each product that makes queries, keys and values."""
    products = [n for n in program.entries["score"].order() if n.op == "matmul" and n.sources[1].op == "weight"]
    return sorted(n.shape[:2] for n in products if ".qkv" in n.sources[1]["name"])


@pytest.mark.parametrize("frames", [2, 3])
def test_frames_that_were_seen_are_computed_once_for_all_candidates(frames: int) -> None:
    """While the window grows each step adds one row of a candidate's own in each layer: the last frame's action is."""
    program = Rollout(3, frames + 2, frames=frames).program()
    exact = run(program, EXACT)
    assert np.array_equal(costs(program), costs(exact))
    assert rows_of_qkv(exact) == [(1, frames - 1)] * 2 + [(SAMPLES, 1)] * 2 * 3


def test_a_window_that_slides_over_them_still_shares_what_is_left_of_them() -> None:
    """Three frames, two past actions: the first window has two rows alike for all, the second one, the third none."""
    program = Rollout(3, 3, frames=3).program()
    exact = run(program, EXACT)
    assert np.array_equal(costs(program), costs(exact))
    own = [(SAMPLES, rows) for rows in (1, 2, 3)]
    assert rows_of_qkv(exact) == sorted(2 * [(1, 1), (1, 2), *own])


def test_one_frame_asks_itself_nothing() -> None:
    """The first window's attention sees one key, so its queries are not computed; its keys are, for later windows."""
    program = Rollout(3, 3).program()
    exact = run(program, EXACT)
    assert np.array_equal(costs(program), costs(exact))
    products = [n for n in exact.entries["score"].order() if n.op == "matmul" and n.sources[1].op == "weight"]
    widths = {n.sources[1]["name"]: n.shape[-1] for n in products if ".qkv" in n.sources[1]["name"]}
    whole = 3 * HEADS * HEAD
    cut = f"[{whole // 3}:{whole}]"
    assert widths == {f"{layer}.qkv{part}": w for layer in "01" for part, w in ((cut, 2 * whole // 3), ("", whole))}
    for name in (n for n in widths if cut in n):
        assert np.array_equal(exact.weights[name], exact.weights[name.removesuffix(cut)][:, whole // 3 :])


def test_a_window_that_sees_the_future_is_not_reused() -> None:
    program = Rollout(3, 3, causal=False).program()
    exact = run(program, EXACT)
    assert np.array_equal(costs(program), costs(exact))
    ups = [n.shape[1] for n in exact.entries["score"].order() if n.op == "matmul" and n.shape[-1] == 16]
    assert 3 in ups or 2 in ups  # later windows stay whole: their early tokens saw other tokens


def test_a_sliding_window_stays_whole() -> None:
    """Positions shift, so nothing an earlier window computed is the same row."""
    program = Rollout(5, 2).program()
    exact = run(program, EXACT)
    assert np.array_equal(costs(program), costs(exact))
    products = [n for n in exact.entries["score"].order() if n.op == "matmul"]
    assert any(n.shape[1:2] == (2,) and n.shape[-1] == 3 * HEADS * HEAD for n in products)


@pytest.mark.parametrize("frames", [1, 2])
def test_a_pass_that_ignored_positions_would_be_seen(frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: rows of the position table are taken to be alike, so a slid window seems to be a prefix."""
    module = importlib.import_module(reuse_prefixes.__module__)
    made_cut = module._Reuse.made_cut

    def first_rows(self, x: Node, axis: int, start: int, stop: int, through: int) -> Node:
        start, stop = (0, stop - start) if x.op == "weight" else (start, stop)
        return made_cut(self, x, axis, start, stop, through)

    program = run(Rollout(3, 3, frames=frames).program(), EXACT[: EXACT.index(reuse_prefixes)])
    monkeypatch.setattr(module._Reuse, "made_cut", first_rows)
    assert not np.array_equal(costs(program), costs(reuse_prefixes(program)))


def test_a_query_that_sees_no_key_keeps_all_of_them() -> None:
    """With a finite mask value its weights are uniform over every key, so leaving masked keys out would change it."""
    rng = np.random.default_rng(3)
    weights = {"mask": np.zeros((2, 2), np.int32), "q": rng.standard_normal((1, 1, 2, 4)).astype(np.float32)}

    def attend(z: Node) -> Node:
        tokens = z.shape[2]
        mask = e.equal(e.narrow(e.narrow(e.weight("mask", (2, 2), "i32"), 0, 0, tokens), 1, 0, tokens), 1)
        scores = e.select(mask, e.matmul(z, e.permute(z, (0, 1, 3, 2))), -1e31)
        return e.matmul(e.softmax(scores, -1), z)

    one, two = e.input("one", (1, 1, 1, 4)), e.input("two", (1, 1, 1, 4))
    graph = Graph({"short": attend(one), "long": attend(e.concat([one, two], 2))})
    program = Program({"score": graph}, weights)
    reused = reuse_prefixes(program)
    given = inputs(program)
    for name in ("short", "long"):
        before, after = (interp(p.entries["score"], given, p.weights)[name] for p in (program, reused))
        assert np.array_equal(before, after), name

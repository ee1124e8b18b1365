"""What the static bound counts of a launch: whole tiles, the busiest multiprocessor, memory a call at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgewm import format as ewm
from edgewm.cuda import bound
from edgewm.cuda.launches import SIDE, TILE
from edgewm.target import resolve

ORIN, MAXN = resolve("orin", "MAXN")
DEPTH, WIDTH, BLOCKS = 2048, 192, 10


def call(index: int, kernel: str, dims: list[int], **work: int) -> dict[str, Any]:
    return {"call": index, "kernel": kernel, "dims": dims, "lanes": 300, "work": {"does": "as it is", **work}}


PRODUCT = call(0, "product_i8<A, B>", [1, WIDTH, DEPTH], i8=2 * 300 * WIDTH * DEPTH, weights=WIDTH * DEPTH)
NORM = call(1, "reduce<C>", [1, WIDTH], vector=300 * WIDTH)
NEXT = call(2, "product_i8<A, D>", [1, 2048, WIDTH], i8=2 * 300 * 2048 * WIDTH)


def launches(*rows: tuple[int, int, int]) -> np.ndarray:
    """Of (call, phase, blocks)."""
    table = np.zeros(len(rows), ewm.LAUNCH)
    table["call"], table["phase"], table["blocks"] = np.transpose(rows)
    return table


def test_what_a_chain_runs_whole_is_apart_from_the_product_whose_rows_it_rounds() -> None:
    chain, behind = bound.parts_of([PRODUCT, NORM, NEXT], launches((2, 0, BLOCKS), (2, 1, 96)))
    assert (chain.works, chain.blocks, chain.launches) == ([PRODUCT["work"], NORM["work"]], BLOCKS, 1)
    assert (behind.works, behind.blocks, behind.launches) == ([NEXT["work"]], 96, 1)
    (alone,) = bound.parts_of([PRODUCT], launches((0, 0, BLOCKS), (0, 1, 60)))
    assert (alone.blocks, alone.launches) == (60, 2)
    assert len(bound.parts_of([PRODUCT, NORM], launches((1, 0, BLOCKS)))) == 1


def test_a_product_of_whole_rows_is_counted_by_passes_over_its_columns() -> None:
    (tile,) = bound.tiles_of([PRODUCT, NORM], BLOCKS)
    passes = WIDTH // SIDE
    assert (tile.form, tile.operations) == ("i8", 2.0 * BLOCKS * TILE * WIDTH * DEPTH)
    assert tile.bytes == BLOCKS * passes * (TILE + SIDE) * DEPTH
    assert len(bound.tiles_of([PRODUCT, NORM, NEXT], BLOCKS)) == 2
    assert bound.tiles_of([NORM], BLOCKS) == []


@pytest.mark.parametrize("limit", ["tensor", "vector", "l2"])
def test_multiprocessors_without_a_block_do_nothing(limit: str) -> None:
    works = [PRODUCT["work"], NORM["work"]]

    def us(blocks: int) -> float:
        return bound.limits_us(works, [], blocks, ORIN, MAXN)[limit]

    assert us(BLOCKS) == pytest.approx(us(MAXN.sm) * MAXN.sm / BLOCKS)
    assert us(MAXN.sm + 1) == pytest.approx(us(MAXN.sm) * 2 * MAXN.sm / (MAXN.sm + 1))


def test_the_l2_holds_what_each_call_can_leave_there() -> None:
    held = ORIN.gpu.l2_bytes
    one, two = ({"arena": held + extra} for extra in (1000, 2000))
    memory = bound.limits_us([one, two, {"arena": held}], [], MAXN.sm, ORIN, MAXN)["memory"]
    assert memory == pytest.approx(3000 / (MAXN.dram_gbps * 1e3))

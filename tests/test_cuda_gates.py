"""Occupancy against NVIDIA's calculator, and each gate with an input that it must refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgewm.cuda import gates
from edgewm.cuda.compile import Compiled, KernelFacts
from edgewm.cuda.occupancy import occupancy, resident_blocks
from edgewm.errors import EdgewmError
from edgewm.target import resolve

ORIN, MAXN = resolve("orin", "MAXN")
THOR, _ = resolve("thor", "MAXN")
# What `cuda_occupancy.h` gives: board, registers, threads, shared bytes -> blocks of an SM.
KNOWN = [
    (ORIN, 157, 128, 24_576, 3),
    (ORIN, 72, 128, 30_720, 5),
    (ORIN, 127, 256, 5_432, 2),
    (THOR, 143, 128, 40_992, 3),
]
FACTS = KernelFacts("product", 127, 0, 0, 1024, 7, "8.5", {"IMMA.16832.S8.S8": 8, "EXIT": 1})
USE = gates.Use("product", 32, 256, 8192, cooperative=True)


@pytest.mark.parametrize(("board", "registers", "threads", "shared", "blocks"), KNOWN)
def test_occupancy_is_nvidias(board, registers, threads, shared, blocks):
    assert occupancy(board.gpu, registers, threads, shared).blocks == blocks


def test_occupancy_says_what_allows_no_more():
    assert occupancy(ORIN.gpu, 157, 128, 24_576).limit == "registers"
    assert occupancy(ORIN.gpu, 72, 128, 30_720).limit == "shared memory"
    assert occupancy(ORIN.gpu, 16, 256, 0) == occupancy(ORIN.gpu, 1, 256, 0)
    assert occupancy(ORIN.gpu, 16, 256, 0).limit == "threads" and occupancy(ORIN.gpu, 16, 256, 0).fraction == 1
    assert occupancy(ORIN.gpu, 16, 32, 0).limit == "blocks" and occupancy(ORIN.gpu, 16, 32, 0).warps == 16
    assert occupancy(ORIN.gpu, 255, 512, 0).blocks == 0


@pytest.mark.parametrize(
    ("name", "mode", "blocks"),
    [("orin", "MAXN", 32), ("orin", "30W", 16), ("orin-32", "MAXN", 28), ("orin-nano", "7W", 8), ("thor", "MAXN", 40)],
)
def test_how_many_blocks_run_at_once_belongs_to_the_power_mode(name, mode, blocks):
    assert resident_blocks(*resolve(name, mode), 127, 256, 5_432) == blocks


def test_a_mode_whose_sms_are_not_known_and_a_board_whose_blocks_are_not():
    with pytest.raises(EdgewmError, match="how many SMs jetson_agx_thor_t5000 has in 90W is not known") as told:
        resident_blocks(*resolve("thor", "90W"), 64, 256, 0)
    assert "MAXN" in told.value.fix
    with pytest.raises(EdgewmError, match="how many blocks an SM of Volta GV11B holds is not known"):
        occupancy(resolve("xavier")[0].gpu, 64, 256, 0)


def checked(facts=FACTS, use=USE, instruction="IMMA.16832.S8", board=ORIN, mode=MAXN, **bound):
    compiled = Compiled("sm_87", b"", "", (facts,))
    gates.check(compiled, [use], {"product": instruction}, board, mode, **bound)


def test_a_kernel_that_keeps_to_everything_passes():
    checked()
    checked(replace(FACTS, spill_bytes=16), spills={"product": 16})
    checked(use=replace(USE, blocks=10_000, cooperative=False))


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ({"facts": replace(FACTS, spill_bytes=4)}, "4 bytes a thread are spilled, 0 are allowed"),
        ({"facts": replace(FACTS, instructions={"IMAD": 9})}, "there is no IMMA.16832.S8 in its machine code"),
        ({"instruction": "HMMA"}, "there is no HMMA in its machine code"),
        (
            {"use": replace(USE, shared_bytes=166_912)},
            "a block asks for 167936 bytes of shared memory; 166912 is the most",
        ),
        ({"use": replace(USE, threads=1024)}, "a block of 1024 threads with 127 registers each does not fit an SM"),
        (
            {"use": replace(USE, shared_bytes=96 << 10, resident=2)},
            "an SM holds 1 of its blocks at once, limited by shared memory; 2 are wanted",
        ),
        ({"use": replace(USE, blocks=33)}, "a cooperative grid of 33 blocks; 32 run at once in MAXN"),
        ({"mode": ORIN.mode_named("30W")}, "a cooperative grid of 32 blocks; 16 run at once in 30W"),
        ({"use": replace(USE, kernel="other")}, "no kernel 'other' was compiled"),
        ({"facts": replace(FACTS, elf_abi=8)}, "the cubin is ELF ABI 8; drivers of Ampere GA10B load 7"),
        (
            {"facts": replace(FACTS, ptx_version="9.0")},
            "PTX is of version 9.0; drivers of Ampere GA10B compile up to 8.5",
        ),
    ],
)
def test_planted_faults_are_refused(planted, said):
    with pytest.raises(EdgewmError, match=said):
        checked(**planted)

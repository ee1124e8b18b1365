"""What PTX instructions mean that lanes of a warp execute together, and copies on their way; see ptx_ops.py."""

from __future__ import annotations

import numpy as np
from ptx import WARP
from ptx_values import TYPES, kind_of, parts, read, space_of, unsupported, write

from edgewm.ops import fma32

LANES = np.arange(WARP)


def shuffle(m, op, operands):
    how = op[2]
    names = [n.strip() for n in operands[0].split("|")]
    put, value = write(m, names[0], np.uint32), read(m, operands[1], np.uint32)
    inside = write(m, names[1], np.bool_) if len(names) > 1 else None
    by, clamp, members = (read(m, o, np.uint32) for o in operands[2:5])

    def step(mask):
        warps = m.whole_warps(mask)
        b, c = (np.broadcast_to(v, (m.size,))[warps].astype(np.int64) for v in (by, clamp))
        if (np.broadcast_to(members, (m.size,))[warps] != 0xFFFFFFFF).any():
            raise m.fault("only some lanes are named")
        limit, segment = c & 31, c >> 8 & 31
        last, first = (LANES & segment) | (limit & ~segment & 31), LANES & segment
        lane = {"up": LANES - b, "down": LANES + b, "bfly": LANES ^ b, "idx": first | (b & ~segment & 31)}[how]
        ok = lane >= last if how == "up" else lane <= last
        lane = np.where(ok, lane, LANES)
        got, held = np.zeros(m.size, np.uint32), np.zeros(m.size, bool)
        got[warps] = np.take_along_axis(np.broadcast_to(value, (m.size,))[warps], lane & 31, 1)
        held[warps] = ok
        put(got, mask)
        if inside:
            inside(held, mask)

    return step


def vote(m, op, operands):
    how = op[2]
    put = write(m, operands[0], np.uint32 if how == "ballot" else np.bool_)
    holds = m.predicate(operands[1])

    def step(mask):
        warps = m.whole_warps(mask)
        said = holds()[warps]
        bits = (said.astype(np.uint64) << LANES.astype(np.uint64)).sum(1, dtype=np.uint64)
        found = {"ballot": bits, "all": said.all(1), "any": said.any(1)}[how]
        whole = np.zeros(m.size, np.uint32 if how == "ballot" else bool)
        whole[warps] = found[:, None]
        put(whole, mask)

    return step


def reduce_warp(m, op, operands):
    kind = kind_of(op)
    put, value = write(m, operands[0], kind), read(m, operands[1], kind)
    function = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or,
                "xor": np.bitwise_xor}[op[2]]  # fmt: skip

    def step(mask):
        warps = m.whole_warps(mask)
        whole = np.zeros(m.size, kind)
        whole[warps] = function.reduce(np.broadcast_to(value, (m.size,))[warps], axis=1, dtype=kind)[:, None]
        put(whole, mask)

    return step


def matrices(m, op, operands):
    """ldmatrix: lane i names row i % 8 of matrix i / 8; lane l gets bytes 4 (l % 4) of row l / 4 of each."""
    if op[-1] != "b16" or "m8n8" not in op:
        raise ValueError(op)
    to = parts(operands[0])
    puts, address = [write(m, o, np.uint32) for o in to], m.address(operands[1])
    turned, space = "trans" in op, space_of(op)

    def step(mask):
        warps = m.whole_warps(mask)
        places = address()
        rows = warps[:, : 8 * len(to)].reshape(-1)
        got = m.load(space, rows, places[rows], 16).view(np.uint16).reshape(len(warps), len(to), 8, 8)
        if turned:
            got = got.transpose(0, 1, 3, 2)
        words = np.ascontiguousarray(got).view(np.uint32).reshape(len(warps), len(to), WARP)
        for i, put in enumerate(puts):
            whole = np.zeros(m.size, np.uint32)
            whole[warps] = words[:, i]
            put(whole, mask)

    return step


GROUP, PLACE = LANES // 4, LANES % 4
NUMBERS = {"s8": (np.int8, np.int32), "u8": (np.uint8, np.int32), "f16": (np.float16, np.float32)}


def multiply_matrices(m, op, operands):
    """mma of 16 x 32 bytes by 32 bytes x 8: fragments as the PTX manual draws them, for s8 and for 16-bit numbers.

    In which order a GPU adds is its own and not documented. Here it is the op table's, neighbours of k in pairs, the
    later one first, so that all else can be compared to the bit.
    """
    shape, kind = op[3], op[-3]
    if (shape, kind) not in {("m16n8k32", "s8"), ("m16n8k16", "f16"), ("m16n8k16", "bf16")} or op[4:6] != (
        "row",
        "col",
    ):
        raise ValueError(op)
    unsupported(op, {"satfinite", "sp"})
    sums = TYPES[op[-1]]
    puts = [write(m, o, sums) for o in parts(operands[0])]
    a, b, c = (
        [read(m, o, k) for o in parts(text)] for text, k in zip(operands[1:], (np.uint32, np.uint32, sums), strict=True)
    )

    def bytes_of(words, rows, half, warps, height):
        """The rows of 32 bytes that a warp's registers hold: register i at row and half of its own."""
        whole = np.zeros((len(warps), height, 2, 4), np.uint32)
        for word, row, side in zip(words, rows, half, strict=True):
            whole[:, GROUP + row, side, PLACE] = np.broadcast_to(word, (m.size,))[warps]
        return whole.reshape(len(warps), height, 8).view(np.uint8)

    def numbers(raw):
        if kind == "bf16":
            return (raw.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
        return raw.view(np.int8).astype(np.float64) if kind == "s8" else raw.view(np.float16).astype(np.float32)

    def step(mask):
        warps = m.whole_warps(mask)
        left = numbers(bytes_of(a, (0, 8, 0, 8), (0, 0, 1, 1), warps, 16))
        right = numbers(bytes_of(b, (0, 0), (0, 1), warps, 8))
        places = [(slice(None), GROUP + 8 * (i // 2), 2 * PLACE + i % 2) for i in range(4)]
        total = np.zeros((len(warps), 16, 8), sums)
        for place, own in zip(places, c, strict=True):
            total[place] = np.broadcast_to(own, (m.size,))[warps]
        if sums is np.float32:
            for k in sorted(range(left.shape[-1]), key=lambda k: (k // 2, -k)):
                total = fma32(left[:, :, None, k], right[:, None, :, k], total)
        else:
            total += (left @ right.transpose(0, 2, 1)).astype(sums)  # exact
        for place, put in zip(places, puts, strict=True):
            whole = np.zeros(m.size, sums)
            whole[warps] = total[place]
            put(whole, mask)

    return step


def copy_async(m, op, operands):
    if "bulk" in op:
        raise ValueError(op)
    if op[2] == "commit_group":
        return m.commit
    if op[2] in ("wait_group", "wait_all"):
        groups = int(operands[0]) if operands else -1
        return lambda mask: m.wait(mask, groups)
    to, of = m.address(operands[0]), m.address(operands[1])
    size = int(operands[2])
    given = read(m, operands[3], np.uint32) if len(operands) > 3 else None

    def step(mask):
        who = m.threads_in(mask)
        values = np.zeros((len(who), size), np.uint8)
        present = np.full(len(who), size) if given is None else np.broadcast_to(given, (m.size,))[who]
        for bytes_ in np.unique(present[present > 0]):
            some = present == bytes_
            values[some, : int(bytes_)] = m.load("global", who[some], of()[who[some]], int(bytes_))
        m.copy_async(mask, to()[who], values)

    return step

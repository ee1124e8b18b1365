"""Which function each PTX opcode is, over all threads at once; an opcode that is not here raises by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import numpy as np
import ptx_values as v
import ptx_warps as w
from ptx import LOCAL_BASE, SHARED_BASE
from ptx_values import TYPES, kind_of, of_values, parts, read, space_of, write

Step = Callable[[np.ndarray | None], None]


def decode(m, instruction) -> Step:
    """The function of a mask that an instruction is. NotImplementedError names one that is unknown."""
    op = instruction.op
    for name in (".".join(op[:3]), ".".join(op[:2]), op[0]):
        if name in TABLE:
            try:
                return TABLE[name](m, op, instruction.operands)
            except (KeyError, ValueError, AttributeError, TypeError) as fault:
                raise NotImplementedError(f"{m.kernel.name}: {instruction.text}") from fault
    raise NotImplementedError(f"{m.kernel.name}: no instruction {'.'.join(op)} ({instruction.text})")


# ---------------------------------------------------------------------------------------------- moving


def move(m, op, operands):
    kind = kind_of(op)
    to, of = parts(operands[0]), parts(operands[1])
    if operands[1] in m.special:
        put, name = write(m, operands[0], kind), operands[1]
        return lambda mask: put(m.special[name].astype(kind), mask)
    if len(to) == len(of) == 1:
        put, value = write(m, operands[0], kind), read(m, operands[1], kind)
        return lambda mask: put(value, mask)
    size = np.dtype(kind).itemsize
    if len(to) == 1:  # pack
        narrow = TYPES[f"b{8 * size // len(of)}"]
        put, values = write(m, operands[0], TYPES[f"b{8 * size}"]), [read(m, o, narrow) for o in of]

        def pack(mask):
            both = np.stack(np.broadcast_arrays(*values, np.zeros(m.size, narrow))[:-1], -1)
            put(np.ascontiguousarray(both).view(TYPES[f"b{8 * size}"])[:, 0], mask)

        return pack
    narrow = TYPES[f"b{8 * size // len(to)}"]
    puts, value = [write(m, o, narrow) for o in to], read(m, operands[1], TYPES[f"b{8 * size}"])

    def unpack(mask):
        split = np.ascontiguousarray(value).view(narrow).reshape(-1, len(to)).copy()
        for i, put in enumerate(puts):
            put(split[:, i], mask)

    return unpack


def to_generic(m, op, operands):
    """cvta.space and cvta.to.space: shared and local memory lie in windows of generic addresses."""
    base = {"shared": SHARED_BASE, "local": LOCAL_BASE, "global": 0, "const": 0}[op[-2].split("::")[0]]
    put, value = write(m, operands[0], np.uint64), read(m, operands[1], np.uint64)
    base = np.uint64((-base if op[1] == "to" else base) % (1 << 64))
    return lambda mask: put(value + base, mask)


def load(m, op, operands):
    kind, space = kind_of(op), space_of(op)
    to = parts(operands[0])
    puts, each = [write(m, o, kind) for o in to], np.dtype(kind).itemsize
    if space == "param":
        name, offset = re.fullmatch(r"\[([\w$]+)(?:\+(\d+))?\]", operands[1]).groups()
        at = m.kernel.parameters[name][0] + int(offset or 0)
        values = m.parameters[at : at + each * len(to)].view(kind)
        return lambda mask: [put(v, mask) for put, v in zip(puts, values, strict=True)]
    address = m.address(operands[1])

    def step(mask):
        who = m.threads_in(mask)
        m.spun |= "volatile" in op
        got = m.load(space, who, address()[who], each * len(to)).view(kind)
        for i, put in enumerate(puts):
            if mask is None:
                put(got[:, i], None)
            else:
                whole = np.zeros(m.size, kind)
                whole[who] = got[:, i]
                put(whole, mask)

    return step


def store(m, op, operands):
    kind, space = kind_of(op), space_of(op)
    address, values = m.address(operands[0]), [read(m, o, kind) for o in parts(operands[1])]

    def step(mask):
        who = m.threads_in(mask)
        all_ = np.stack([np.broadcast_to(v, (m.size,)) for v in values], -1)[who]
        m.store(space, who, address()[who], np.ascontiguousarray(all_).view(np.uint8))

    return step


def atomic(m, op, operands, returns: bool):
    """One thread after the other, in their order."""
    kind, space = kind_of(op), space_of(op)
    put = write(m, operands[0], kind) if returns else None
    address = m.address(operands[1 if returns else 0])
    values = [read(m, o, kind) for o in operands[2 if returns else 1 :]]
    how = next(w for w in op if w in ("add", "min", "max", "exch", "cas", "or", "and", "inc"))
    function = {"add": lambda old, v: old + v, "min": np.minimum, "max": np.maximum, "exch": lambda old, v: v,
                "or": lambda old, v: old | v, "and": lambda old, v: old & v,
                "inc": lambda old, v: np.where(old >= v, 0, old + 1),
                "cas": lambda old, c, v: np.where(old == c, v, old)}[how]  # fmt: skip

    def step(mask):
        who, old = m.threads_in(mask), np.zeros(m.size, kind)
        places, size = address(), np.dtype(kind).itemsize
        for t in who:
            one = np.array([t])
            for name, _, at in m.split(space, one, places[one]):
                data, place = m.place(name, one, at, size, "atomic")
                value = data[place[0] : place[0] + size].view(kind)
                old[t] = value[0]
                found = function(value[0], *(np.broadcast_to(v, (m.size,))[t] for v in values))
                data[place[0] : place[0] + size] = np.array([found]).astype(kind).view(np.uint8)
        if put:
            put(old, mask)

    return step


def whole_warp(m, op, operands):
    return lambda mask: m.whole_warps(mask) is None


def nothing(m, op, operands):
    return lambda mask: None


TABLE: dict[str, Callable] = {
    "add": of_values(np.add), "sub": of_values(np.subtract), "mul": partial(v.multiply, add=False),
    "mad": partial(v.multiply, add=True), "div": of_values(v.divide), "rem": of_values(v.remainder),
    "min": of_values(partial(v.least, sign=1)), "max": of_values(partial(v.least, sign=-1)),
    "abs": of_values(np.abs, 1), "neg": of_values(np.negative, 1), "sqrt": of_values(np.sqrt, 1), "fma": v.fused,
    "dp4a": v.sad_dot, "setp": v.compare, "selp": v.select, "cvt": v.convert, "prmt": v.permute, "lop3": v.logic3,
    "bfe": v.extract, "bfi": v.insert, "shf": v.funnel, "popc": v.count_ones, "clz": v.leading_zeros,
    "mov": move, "cvta": to_generic,
    "shl": partial(v.shift, left=True), "shr": partial(v.shift, left=False), "and": of_values(np.bitwise_and),
    "or": of_values(np.bitwise_or), "xor": of_values(np.bitwise_xor), "not": of_values(np.invert, 1), "ld": load,
    "ldu": load, "st": store, "atom": partial(atomic, returns=True), "red": partial(atomic, returns=False),
    "shfl.sync": w.shuffle, "vote.sync": w.vote, "redux.sync": w.reduce_warp, "ldmatrix.sync": w.matrices,
    "mma.sync": w.multiply_matrices, "cp.async": w.copy_async, "bar.warp": whole_warp, "membar": nothing,
    "fence": nothing,
}  # fmt: skip

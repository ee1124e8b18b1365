"""Operands of PTX instructions and what arithmetic means; see ptx_ops.py."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from edgewm.ops import fma32

TYPES = {"b8": np.uint8, "u8": np.uint8, "s8": np.int8, "b16": np.uint16, "u16": np.uint16, "s16": np.int16,
         "f16": np.float16, "b32": np.uint32, "u32": np.uint32, "s32": np.int32, "f32": np.float32, "b64": np.uint64,
         "u64": np.uint64, "s64": np.int64, "f64": np.float64, "pred": np.bool_}  # fmt: skip
WIDE = {np.uint16: np.uint32, np.int16: np.int32, np.uint32: np.uint64, np.int32: np.int64}


def read(m, operand: str, kind: type) -> np.ndarray:
    """A register as `kind` (its low bits where it is wider), a number or what a name stands for."""
    if operand in m.registers:
        value = m.registers[operand]
        if value.dtype == bool:
            return value
        wide, narrow = value.dtype.itemsize, np.dtype(kind).itemsize
        if wide < narrow:
            raise ValueError(operand)
        return value.view(kind)[:: wide // narrow]
    if operand[:2] in ("0f", "0F"):
        return np.array(int(operand[2:], 16), np.uint32).view(np.float32).astype(kind)
    if operand[:2] in ("0d", "0D"):
        return np.array(int(operand[2:], 16), np.uint64).view(np.float64).astype(kind)
    if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", operand):
        bits = 8 * np.dtype(kind).itemsize
        if kind is np.bool_:
            return np.array(int(operand.rstrip("U"), 0) != 0)
        return np.array(int(operand.rstrip("U"), 0) % (1 << bits), f"u{bits // 8}").view(kind)
    known = m.symbol(operand)
    if known is None:
        raise KeyError(operand)
    return np.array(known).astype(kind)


def write(m, operand: str, kind: type) -> Callable:
    """A function of values and mask that sets a register; a wider one is extended as `kind` is."""
    if operand == "_":
        return lambda values, mask: None
    register = m.registers[operand]
    wide = register.dtype.itemsize
    if register.dtype == bool or wide == np.dtype(kind).itemsize:
        target = register if register.dtype == bool else register.view(kind)
    else:
        target = register.view(f"{'i' if np.dtype(kind).kind == 'i' else 'u'}{wide}")

    def put(values, mask):
        if mask is None:
            target[...] = values
        else:
            np.copyto(target, values, where=mask, casting="unsafe")

    return put


def parts(operand: str) -> list[str]:
    return [p.strip() for p in operand.strip("{}").split(",")] if operand.startswith("{") else [operand]


def kind_of(op) -> type:
    return TYPES[op[-1]]


SPACES = ("global", "shared", "local", "const", "param")


def space_of(op) -> str:
    return next((w.split("::")[0] for w in op[1:] if w.split("::")[0] in SPACES), "")


def of_values(function: Callable, sources: int = 2) -> Callable:
    """The rule of `op.type d, sources...`, `function` being of values of that type."""

    def rule(m, op, operands):
        kind = kind_of(op)
        put = write(m, operands[0], kind)
        values = [read(m, o, kind) for o in operands[1 : 1 + sources]]
        if len(values) != sources:
            raise ValueError(operands)
        unsupported(op, {"ftz", "sat", "approx", "full", "rz", "rm", "rp", "cc", "x2"})
        return lambda mask: put(function(*values), mask)

    return rule


def unsupported(op, words: set[str]) -> None:
    if words & set(op):
        raise ValueError(f"{words & set(op)}")


# ---------------------------------------------------------------------------------------------- numbers


def divide(a, b):
    if a.dtype.kind == "f":
        return a / b
    quotient = np.abs(a.astype(object)) // np.abs(b.astype(object)) if a.dtype.itemsize == 8 else None
    if quotient is None:
        wide = a.astype(np.int64), b.astype(np.int64)
        safe = np.where(wide[1] == 0, 1, np.abs(wide[1]))
        quotient = np.where(wide[1] == 0, -1, np.abs(wide[0]) // safe)
    sign = np.where((a < 0) != (b < 0), -1, 1)
    return (quotient * sign).astype(a.dtype)


def remainder(a, b):
    return a - divide(np.broadcast_to(a, np.broadcast_shapes(a.shape, b.shape)), b) * b


def least(a, b, sign: int):
    """min (1) or max (-1): a number beside NaN; -0 below 0."""
    if a.dtype.kind != "f":
        return np.minimum(a, b) if sign > 0 else np.maximum(a, b)
    found = np.fmin(a, b) if sign > 0 else np.fmax(a, b)
    bits = f"u{a.dtype.itemsize}"
    a, b = np.broadcast_arrays(a, b)
    zeros = (a == 0) & (b == 0)
    joined = np.ascontiguousarray(a).view(bits), np.ascontiguousarray(b).view(bits)
    either = (joined[0] | joined[1] if sign > 0 else joined[0] & joined[1]).view(a.dtype)
    return np.where(zeros, either, found)


def shift(m, op, operands, left: bool):
    kind = kind_of(op)
    put, value, by = write(m, operands[0], kind), read(m, operands[1], kind), read(m, operands[2], np.uint32)
    bits = 8 * np.dtype(kind).itemsize
    signed = np.dtype(kind).kind == "i"

    def step(mask):
        held = np.minimum(by, bits - 1).astype(kind)
        found = value << held if left else value >> held
        put(found if signed and not left else np.where(by >= bits, 0, found).astype(kind), mask)

    return step


def multiply(m, op, operands, add: bool):
    kind = kind_of(op)
    if np.dtype(kind).kind == "f":
        return of_values(np.multiply)(m, op, operands)
    how = op[1]
    out = WIDE[kind] if how == "wide" else kind
    put, a, b = write(m, operands[0], out), read(m, operands[1], kind), read(m, operands[2], kind)
    c = read(m, operands[3], out) if add else None

    def step(mask):
        if how == "lo":
            product = a * b
        elif how == "wide":
            product = a.astype(out) * b.astype(out)
        elif np.dtype(kind).itemsize == 4:
            product = ((a.astype(WIDE[kind]) * b.astype(WIDE[kind])) >> 32).astype(kind)
        else:
            product = ((a.astype(object) * b.astype(object)) >> 64).astype(kind)
        put(product if c is None else product + c, mask)

    return step


def fused(m, op, operands):
    kind = kind_of(op)
    unsupported(op, {"ftz", "sat", "rz", "rm", "rp"})
    put, (a, b, c) = write(m, operands[0], kind), (read(m, o, kind) for o in operands[1:])
    if kind is not np.float32:
        raise ValueError(op)
    return lambda mask: put(fma32(a, b, c), mask)


def sad_dot(m, op, operands):
    """dp4a.a.b d, a, b, c"""
    put = write(m, operands[0], np.int32)
    a, b = (read(m, o, np.uint32) for o in operands[1:3])
    c = read(m, operands[3], np.int32)
    kinds = [np.int8 if t == "s32" else np.uint8 for t in op[1:3]]

    def octets(value, kind):
        return np.ascontiguousarray(value).reshape(-1).view(np.uint8).view(kind).reshape(-1, 4).astype(np.int32)

    return lambda mask: put((octets(a, kinds[0]) * octets(b, kinds[1])).sum(-1, dtype=np.int32) + c, mask)


def compare(m, op, operands):
    how, kind = op[1], kind_of(op)
    joined = op[2] if op[2] in ("and", "or", "xor") else None
    names = [n.strip() for n in operands[0].split("|")]
    first, *second = (write(m, n, np.bool_) for n in names)
    a, b = (read(m, o, kind) for o in operands[1:3])
    with_ = None
    if joined:
        with_ = m.predicate(operands[3])
    signed = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}.get(how, how)
    floats = np.dtype(kind).kind == "f"
    unordered = floats and len(signed) == 3 and signed[-1] == "u"
    plain = signed[:2] if unordered else signed
    function = {"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal,
                "ne": np.not_equal, "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
                "nan": lambda a, b: np.isnan(a) | np.isnan(b)}[plain]  # fmt: skip

    def step(mask):
        found = function(a, b)
        if floats and plain not in ("num", "nan"):
            nan = np.isnan(a) | np.isnan(b)
            found = found | nan if unordered else found & ~nan
        held = (found, ~found)
        if joined:
            function_ = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[joined]
            held = tuple(function_(h, with_()) for h in held)
        first(held[0], mask)
        for put in second:
            put(held[1], mask)

    return step


def select(m, op, operands):
    kind = kind_of(op)
    put, a, b = write(m, operands[0], kind), read(m, operands[1], kind), read(m, operands[2], kind)
    holds = m.predicate(operands[3])
    return lambda mask: put(np.where(holds(), a, b), mask)


ROUND = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def bf16_bits(x: np.ndarray) -> np.ndarray:
    """To nearest, ties to even; NaN is 0x7FFF."""
    bits = np.ascontiguousarray(np.broadcast_to(x, x.shape)).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), rounded)


def convert(m, op, operands):
    unsupported(op, {"ftz", "relu", "satfinite", "rz", "rm", "rp", "rna"})
    if op[-2] in ("bf16", "bf16x2"):
        values = [read(m, o, np.float32) for o in operands[1:]]
        put = write(m, operands[0], np.uint32 if op[-2] == "bf16x2" else np.uint16)
        if op[-1] != "f32":
            raise ValueError(op)
        if op[-2] == "bf16":
            return lambda mask: put(bf16_bits(values[0]), mask)
        high, low = values
        return lambda mask: put(bf16_bits(high).astype(np.uint32) << 16 | bf16_bits(low), mask)
    if op[-1] == "bf16":
        bits, put = read(m, operands[1], np.uint16), write(m, operands[0], np.uint32)
        return lambda mask: put(bits.astype(np.uint32) << 16, mask)
    out, kind = TYPES[op[-2]], TYPES[op[-1]]
    put, value = write(m, operands[0], out), read(m, operands[1], kind)
    to, of = np.dtype(out).kind, np.dtype(kind).kind
    rounding = next((ROUND[w] for w in op if w in ROUND), None)

    def step(mask):
        found = value
        if of == "f" and to != "f":
            bound = np.iinfo(out)
            whole = np.nan_to_num(rounding(value.astype(np.float64)), nan=0.0, posinf=np.inf, neginf=-np.inf)
            inside = (whole >= float(bound.min)) & (whole < float(bound.max) + (0 if bound.max < 1 << 53 else 1))
            inside |= whole == float(bound.max) if bound.max < 1 << 53 else False
            found = np.where(whole < 0, bound.min, bound.max)
            found = np.where(inside, np.where(inside, whole, 0).astype(np.int64 if to == "i" else np.uint64), found)
        elif of == "f" and rounding is not None:
            found = rounding(value)
        elif "sat" in op:
            bound = np.iinfo(out)
            if of == "u" or bound.min == 0:
                found = np.minimum(np.maximum(value, 0).astype(np.uint64), np.uint64(bound.max))
            else:
                found = np.clip(value.astype(np.int64), bound.min, bound.max)
        put(found.astype(out), mask)

    if of == "f" and to != "f" and rounding is None:
        raise ValueError(op)
    return step


# ---------------------------------------------------------------------------------------------- bits


def permute(m, op, operands):
    unsupported(op, {"f4e", "b4e", "rc8", "ecl", "ecr", "rc16"})
    put, (a, b, how) = write(m, operands[0], np.uint32), (read(m, o, np.uint32) for o in operands[1:])

    def step(mask):
        both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
        found = np.zeros(np.broadcast_shapes(both.shape, how.shape), np.uint32)
        for i in range(4):
            pick = (how >> np.uint32(4 * i)).astype(np.uint64)
            byte = both >> (np.uint64(8) * (pick & np.uint64(7))) & np.uint64(0xFF)
            sign = (byte >> np.uint64(7)) * np.uint64(0xFF)
            found |= np.where(pick & np.uint64(8), sign, byte).astype(np.uint32) << np.uint32(8 * i)
        put(found, mask)

    return step


def logic3(m, op, operands):
    put, values = write(m, operands[0], np.uint32), [read(m, o, np.uint32) for o in operands[1:4]]
    table = int(operands[4], 0)

    def step(mask):
        found = np.uint32(0)
        for row in range(8):
            if table >> row & 1:
                ways = [v if row >> (2 - i) & 1 else ~v for i, v in enumerate(values)]
                found = found | (ways[0] & ways[1] & ways[2])
        put(found, mask)

    return step


def extract(m, op, operands):
    kind = kind_of(op)
    put, value = write(m, operands[0], kind), read(m, operands[1], kind)
    first, count = (read(m, o, np.uint32) for o in operands[2:])
    bits = 8 * np.dtype(kind).itemsize

    def step(mask):
        start, length = (first & 0xFF).astype(np.int64), (count & 0xFF).astype(np.int64)
        wide = value.astype(object)
        found = [_field(int(v), int(s), int(n), bits, np.dtype(kind).kind == "i")
                 for v, s, n in zip(*np.broadcast_arrays(wide, start, length), strict=True)]  # fmt: skip
        put(np.array(found).astype(kind), mask)

    return step


def _field(value: int, start: int, length: int, bits: int, signed: bool) -> int:
    if length == 0:
        return 0
    held = value >> min(start, bits) if signed else (value % (1 << bits)) >> start
    field = held % (1 << length)
    return field - (1 << length) if signed and field >> (length - 1) else field


def insert(m, op, operands):
    kind = kind_of(op)
    put, (a, b) = write(m, operands[0], kind), (read(m, o, kind) for o in operands[1:3])
    first, count = (read(m, o, np.uint32) & 0xFF for o in operands[3:])
    bits = 8 * np.dtype(kind).itemsize
    field = np.array((((1 << int(count)) - 1) << int(first)) % (1 << bits), kind)
    return lambda mask: put((b & ~field) | ((a << kind(int(first))) & field), mask)


def funnel(m, op, operands):
    put, (low, high, by) = write(m, operands[0], np.uint32), (read(m, o, np.uint32) for o in operands[1:])

    def step(mask):
        count = (by & 31 if op[2] == "wrap" else np.minimum(by, 32)).astype(np.uint64)
        both = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
        shifted = (both << count) >> np.uint64(32) if op[1] == "l" else both >> count
        put(shifted.astype(np.uint32), mask)

    return step


def count_ones(m, op, operands):
    put, value = write(m, operands[0], np.uint32), read(m, operands[1], kind_of(op))
    return lambda mask: put(np.bitwise_count(value), mask)


def leading_zeros(m, op, operands):
    put, value = write(m, operands[0], np.uint32), read(m, operands[1], np.uint32)
    return lambda mask: put(32 - np.frexp(value.astype(np.float64))[1], mask)

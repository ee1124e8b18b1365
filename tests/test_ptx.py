"""The interpreter of PTX: what instructions mean, a compiled kernel against numpy, planted faults it must catch."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
import ptx
import pytest

from edgewm.cuda.compile import compile_ptx
from edgewm.ops import fma32

SPECIMEN = Path(__file__).parent / "cuda" / "specimen.cu"


@cache
def specimen() -> str:
    return compile_ptx(SPECIMEN.read_text(), {})


# ---------------------------------------------------------------------------------------------- one instruction


def one(line: str, out: str, *inputs: np.ndarray) -> np.ndarray:
    """What `line` leaves in %d of type `out`, for each element of inputs %a, %b, %c."""
    kinds = {"float32": "f32", "float64": "f64", "int32": "s32", "uint32": "u32", "int64": "s64", "uint64": "u64"}
    of = [kinds[i.dtype.name] for i in inputs]
    bits = {k: 8 * i.dtype.itemsize for k, i in zip("abc", inputs, strict=False)}
    loads = [f"ld.global.{k} %{n}, [%p{i}];" for i, (n, k) in enumerate(zip("abc", of, strict=False))]
    size = int(out[1:]) // 8
    n = len(inputs[0])
    lines = [f".reg .b{bits[k]} %{k};" for k in bits] + [f".reg .{out} %d;", ".reg .b64 %p<4>;", ".reg .b32 %t;"]
    lines += [".reg .pred %q;", "mov.u32 %t, %tid.x;"]
    for i in range(len(inputs)):
        lines += [f"ld.param.u64 %p{i}, [p{i}];", f"mad.wide.u32 %p{i}, %t, {inputs[i].dtype.itemsize}, %p{i};"]
    lines += [
        *loads,
        line,
        "ld.param.u64 %p3, [p3];",
        f"mad.wide.u32 %p3, %t, {size}, %p3;",
        f"st.global.{out} [%p3], %d;",
    ]
    head = ", ".join(f".param .u64 p{i}" for i in [*range(len(inputs)), 3])
    text = f".visible .entry one({head})\n{{\n\t" + "\n\t".join(lines) + "\n\tret;\n}\n"
    memory = ptx.Memory()
    room = -(-n // 32) * 32
    places = [memory.put(np.resize(i, room)) for i in inputs] + [memory.empty(room * size)]
    ptx.launch(ptx.parse(text), "one", memory, [np.uint64(p) for p in places], 1, room)
    kind = {v: k for k, v in kinds.items()}.get(out, out.replace("b", "uint"))
    return memory.get(places[-1], np.dtype(kind).type, (n,))


WORDS = np.array([0, 1, 7, 31, 0x7FFFFFFF, 0x80000000, 0x80FF7F01, 0xFFFFFFFF, 0x12345678], np.uint32)
FLOATS = np.array([0.0, -0.0, 0.5, 1.5, 2.5, -2.5, 3e9, -3e9, 1e-40, np.inf, -np.inf, np.nan, 1 / 3], np.float32)
OTHERS = np.resize(np.array([2.0, -0.0, np.nan, -1.0, 0.0, 5.5], np.float32), len(FLOATS))


def integers(values: np.ndarray) -> list[int]:
    return [int(v) for v in values]


def signed(x: int) -> int:
    return x - (1 << 32) if x >> 31 else x


def octets(x: int) -> np.ndarray:
    return np.array([x], np.uint32).view(np.int8).astype(np.int64)


INTEGER_CASES = {
    "add.s32 %d, %a, %b;": lambda a, b: a + b,
    "mul.lo.s32 %d, %a, %b;": lambda a, b: a * b,
    "mul.hi.u32 %d, %a, %b;": lambda a, b: a * b >> 32,
    "mul.hi.s32 %d, %a, %b;": lambda a, b: signed(a) * signed(b) >> 32,
    "mad.lo.s32 %d, %a, %b, -3;": lambda a, b: a * b - 3,
    "shl.b32 %d, %a, %b;": lambda a, b: a << b if b < 32 else 0,
    "shr.u32 %d, %a, %b;": lambda a, b: a >> b if b < 32 else 0,
    "shr.s32 %d, %a, %b;": lambda a, b: signed(a) >> min(b, 31),
    "min.s32 %d, %a, %b;": lambda a, b: min(signed(a), signed(b)),
    "max.u32 %d, %a, %b;": max,
    "div.s32 %d, %a, 7;": lambda a, b: int(signed(a) / 7),
    "rem.s32 %d, %a, 7;": lambda a, b: signed(a) - 7 * int(signed(a) / 7),
    "div.u32 %d, %a, 10;": lambda a, b: a // 10,
    "prmt.b32 %d, %a, %b, 0x7250;": lambda a, b: [a & 255, b >> 8 & 255, a >> 16 & 255, b >> 24],
    "prmt.b32 %d, %a, 0, 0xBBBB;": lambda a, b: 0xFFFFFFFF if a >> 31 else 0,
    "lop3.b32 %d, %a, %b, 0x0F0F0F0F, 0xE2;": lambda a, b: sum(
        1 << i for i in range(32)
        if 0xE2 >> (4 * (a >> i & 1) + 2 * (b >> i & 1) + (0x0F0F0F0F >> i & 1)) & 1
    ),
    "bfe.u32 %d, %a, 5, 9;": lambda a, b: a >> 5 & 511,
    "bfe.s32 %d, %a, 24, 8;": lambda a, b: signed(a) >> 24,
    "bfi.b32 %d, %a, %b, 8, 4;": lambda a, b: (b & ~0xF00) | (a & 15) << 8,
    "shf.l.wrap.b32 %d, %a, %b, 5;": lambda a, b: ((b << 32 | a) << 5) >> 32,
    "shf.r.wrap.b32 %d, %a, %b, 37;": lambda a, b: (b << 32 | a) >> 5,
    "popc.b32 %d, %a;": lambda a, b: a.bit_count(),
    "clz.b32 %d, %a;": lambda a, b: 32 - a.bit_length(),
    "dp4a.s32.s32 %d, %a, %b, 5;": lambda a, b: 5 + int(octets(a) @ octets(b)),
    "setp.lt.s32 %q, %a, %b; selp.b32 %d, 1, 0, %q;": lambda a, b: signed(a) < signed(b),
    "setp.hi.u32 %q, %a, %b; selp.b32 %d, 1, 0, %q;": lambda a, b: a > b,
    "cvt.s32.s8 %d, %a;": lambda a, b: (a & 255) - 256 * (a >> 7 & 1),
    "cvt.sat.s8.s32 %d, %a;": lambda a, b: max(-128, min(127, signed(a))),
}  # fmt: skip


@pytest.mark.parametrize("line", INTEGER_CASES)
def test_integer_instructions_give_what_python_gives(line):
    second = WORDS[::-1].copy()
    got = one(line, "u32", WORDS, second)
    for value, a, b in zip(got, integers(WORDS), integers(second), strict=True):
        wanted = INTEGER_CASES[line](a, b)
        if isinstance(wanted, list):  # bytes, lowest first
            wanted = int.from_bytes(bytes(wanted), "little")
        assert int(value) == int(wanted) % (1 << 32), (line, hex(a), hex(b))


def test_floats_round_and_order_as_the_manual_says():
    with np.errstate(all="ignore"):
        assert_same(one("add.rn.f32 %d, %a, %b;", "f32", FLOATS, OTHERS), FLOATS + OTHERS)
        assert_same(one("div.rn.f32 %d, %a, %b;", "f32", FLOATS, OTHERS), FLOATS / OTHERS)
        assert_same(one("fma.rn.f32 %d, %a, %b, %a;", "f32", FLOATS, OTHERS), fma32(FLOATS, OTHERS, FLOATS))
        assert_same(one("sqrt.rn.f32 %d, %a;", "f32", FLOATS, OTHERS), np.sqrt(FLOATS))
    zero, minus, nan = np.float32(0), np.float32(-0.0), np.float32("nan")
    a, b = np.array([zero, minus, nan, 1, nan], np.float32), np.array([minus, zero, 2, nan, nan], np.float32)
    assert_same(one("max.f32 %d, %a, %b;", "f32", a, b), np.array([0, 0, 2, 1, nan], np.float32))
    assert_same(one("min.f32 %d, %a, %b;", "f32", a, b), np.array([minus, minus, 2, 1, nan], np.float32))
    assert list(one("setp.lt.f32 %q, %a, %b; selp.b32 %d, 1, 0, %q;", "u32", FLOATS, OTHERS)) == list(FLOATS < OTHERS)
    unordered = one("setp.neu.f32 %q, %a, %b; selp.b32 %d, 1, 0, %q;", "u32", FLOATS, OTHERS)
    assert list(unordered) == list(FLOATS != OTHERS)


def test_conversions_round_and_saturate():
    assert_same(one("cvt.rni.f32.f32 %d, %a;", "f32", FLOATS), np.rint(FLOATS))
    assert integers(one("cvt.rzi.s32.f32 %d, %a;", "s32", FLOATS)) == [
        0, 0, 0, 1, 2, -2, 2**31 - 1, -(2**31), 0, 2**31 - 1, -(2**31), 0, 0
    ]  # fmt: skip
    assert integers(one("cvt.rni.u32.f32 %d, %a;", "u32", FLOATS)) == [
        0, 0, 0, 2, 2, 0, 3_000_000_000, 0, 0, 2**32 - 1, 0, 0, 0
    ]  # fmt: skip
    numbers = np.array([2**24 + 1, -(2**24) - 3, 5, -1], np.int32)
    assert_same(one("cvt.rn.f32.s32 %d, %a;", "f32", numbers), numbers.astype(np.float32))
    two = one("cvt.rn.bf16x2.f32 %d, %a, %b;", "u32", np.array([1.00390625, 1.01171875], np.float32),
              np.array([-1.0, np.nan], np.float32))  # fmt: skip
    assert [hex(v) for v in two] == ["0x3f80bf80", "0x3f827fff"]  # ties to even


def assert_same(got: np.ndarray, wanted: np.ndarray) -> None:
    wanted = np.asarray(wanted, np.float32)
    assert (np.isnan(got) == np.isnan(wanted)).all()
    held = ~np.isnan(wanted)
    assert (got[held].view(np.uint32) == wanted[held].view(np.uint32)).all(), (got, wanted)


def test_an_unknown_instruction_raises_by_name():
    with pytest.raises(NotImplementedError, match=r"ex2\.approx\.f32"):
        one("ex2.approx.f32 %d, %a;", "f32", FLOATS)
    with pytest.raises(NotImplementedError, match=r"add\.rz\.f32"):
        one("add.rz.f32 %d, %a, %b;", "f32", FLOATS, OTHERS)


# ---------------------------------------------------------------------------------------------- a whole kernel


def product(text: str, m: int, n: int, depth: int) -> None:
    """AssertionError where the specimen's product, or the largest of each row, is not what numpy says."""
    drawn = np.random.default_rng(m * n + depth)
    a, b = (drawn.integers(-128, 128, (rows, depth)).astype(np.int8) for rows in (m, n))
    memory = ptx.Memory()
    places = [memory.put(a), memory.put(b), memory.empty(4 * m * n), memory.put(np.full(m, -(2**31), np.int32), True)]
    given = [*(np.uint64(p) for p in places), *(np.int32(v) for v in (m, n, depth))]
    ptx.launch(ptx.parse(text), "product", memory, given, (-(-m // 64), -(-n // 32)), 128)
    wanted = a.astype(np.int32) @ b.astype(np.int32).T
    assert (memory.get(places[2], np.int32, (m, n)) == wanted).all(), "the product"
    assert (memory.get(places[3], np.int32, (m,)) == wanted.max(1)).all(), "the largest of each row"


@pytest.mark.parametrize("shape", [(64, 32, 96), (100, 45, 160), (1, 3, 32)])
def test_a_product_on_tensor_cores_is_exact(shape):
    product(specimen(), *shape)


def test_threads_that_part_meet_again():
    n = 150
    drawn = np.random.default_rng(0)
    x, octets = drawn.normal(0, 4, n).astype(np.float32), drawn.integers(0, 256, n).astype(np.uint8)
    memory = ptx.Memory()
    places = [memory.put(x), memory.put(octets), memory.empty(4 * n), memory.empty(4 * n)]
    ptx.launch(ptx.parse(specimen()), "scalars", memory, [*(np.uint64(p) for p in places), np.int32(n)], 3, 64)
    floats, bits = memory.get(places[2], np.float32, (n,)), memory.get(places[3], np.uint32, (n,))
    for i in range(n):
        y, word = x[i], int(octets[i]) | int(octets[(i + 1) % n]) << 8 | int(octets[(i + 2) % n]) << 16
        for k in range(i % 5):
            y = fma32(np.array([y]), np.float32(0.75), np.float32(1) / np.float32(3 + k))[0]
            y = -y if word & 1 else y
            word = word >> 1 ^ (0xEDB88320 if word & 1 else 0)
        wanted = np.sqrt(abs(y)) + np.rint(y * np.float32(8)) + np.float32(int(y))
        assert floats[i] == wanted and int(bits[i]) == (word * 0xD2511F53 >> 32) ^ word.bit_count()


# ---------------------------------------------------------------------------------------------- planted faults

# name: (pattern in the kernel's PTX, what stands there instead, what is said of it)
PLANTED = {
    "late wait": (r"cp\.async\.wait_group 1;", "cp.async.wait_group 2;", "the product|no barrier between"),
    "no wait": (r"cp\.async\.wait_group 1;", "", "the product"),
    "no barrier in the loop": (r"bar\.sync \t0;(?=.*bar\.sync)", "", "no barrier between|the product"),
    "no barrier before the last": (r"bar\.sync \t0;(?!.*bar\.sync)", "", "no barrier between"),
    "wrong lane": (r"(shfl\.sync\.bfly\.b32 [^,]*,[^,]*), %\w+,", r"\1, 4,", "largest"),
    "a lane short": (r"(shfl\.sync\.bfly\.b32 [^,]*,[^,]*, %\w+), %\w+,", r"\1, 28,", "largest"),
    "row off by one": (r"(atom\.global\.max\.s32 [^\[]*\[%\w+)\]", r"\1+4]", "largest|belong to nobody"),
    "not aligned": (r"(ldmatrix[^;]*\[%\w+)\]", r"\1+4]", "not a multiple of 16"),
    "beyond the tile": (r"(ldmatrix[^;]*\[%\w+)\]", r"\1+65536]", "of shared memory"),
    "half a copy": (r"(cp\.async\.cg\.shared\.global \[[^\]]*\], \[[^\]]*\], 16, )%\w+;", r"\g<1>8;", "the product"),
    "another fragment": (r"(mma\.sync[^;]*\}, \{)(%\w+), (%\w+)(, [^;]*\}, \{[^;]*;)", r"\1\3, \2\4", "the product"),
    "written over": (r"\[product_param_2\]", "[product_param_0]", "read only"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_faults_are_caught(name):
    pattern, instead, said = PLANTED[name]
    kernel = re.search(r"\.entry product\(.*?^\}", specimen(), re.S | re.M)[0]
    mutant, count = re.subn(pattern, instead, kernel, flags=re.S)
    assert count and mutant != kernel, f"nothing to mend in {name}"
    with pytest.raises(AssertionError, match=said):
        product(mutant, 100, 45, 160)


def test_a_barrier_that_some_reach_elsewhere_and_a_warp_without_all_lanes_are_faults():
    text = """
.visible .entry apart(.param .u64 p0)
{
	.reg .pred %q;
	.reg .b32 %t<3>;
	mov.u32 %t0, %tid.x;
	setp.lt.u32 %q, %t0, BOUND;
	@%q bra $THERE;
	FIRST
	bra $END;
$THERE:
	SECOND
$END:
	ret;
}
"""
    bar, shuffle = "bar.sync 0;", "shfl.sync.bfly.b32 %t1, %t0, 1, 31, -1;"
    for bound, first, second, said in (("32", bar, bar, "different barriers"), ("16", shuffle, "", "not all lanes")):
        own = text.replace("BOUND", bound).replace("FIRST", first).replace("SECOND", second)
        with pytest.raises(ptx.Fault, match=said):
            ptx.launch(ptx.parse(own), "apart", ptx.Memory(), [np.uint64(0)], 1, 64)

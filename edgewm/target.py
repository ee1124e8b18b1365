"""Boards as facts: one frozen `Target` a file of `targets/`, in one of its power modes.

SM count, clocks and bandwidth belong to a mode and not to a board, so everything is asked of the pair that `resolve`
returns. Advertised figures are the fields, measured ones stand beside them in `measured`; every table of a file names
its `source`. A figure nobody has confirmed is absent (None) or says so in its source. `host` is read from the machine
at hand. Passes ask facts (`target.has("dotprod")`), never names.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args, get_type_hints

from .errors import EdgewmError
from .paths import TARGETS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ISAS = {"x86_64": ("avx512", "avx2", "scalar"), "aarch64": ("neon", "scalar")}

# Features that go with each level of kernels.
OF_ISA = {
    "avx512": ("avx512", "avx512vnni", "avx512bf16"), "avx2": ("avx2", "fma", "f16c"), "neon": ("dotprod", "i8mm"),
}  # fmt: skip
CONFIDENCE = ("two sources", "one source", "derived", "unconfirmed")
# zig's `-mcpu` for each level of x86-64. x86_64_v4 comes with a tuning that halves 64-byte vectors: it is taken out.
X86_CPU = {"avx512": "x86_64_v4+avx512vnni-prefer_256_bit", "avx2": "x86_64_v3", "scalar": "x86_64"}


@dataclass(frozen=True)
class Software:
    """Of the board: compiler triple, the oldest glibc to serve, JetPack releases known to run on it."""

    triple: str
    source: str
    glibc: str = ""
    jetpack: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rates:
    """Dense operations per clock by format, a multiply-add counting as two; None where unknown or there is none."""

    fp32: int | None = None
    fp16: int | None = None
    bf16: int | None = None
    int8: int | None = None
    fp8: int | None = None
    fp4: int | None = None


@dataclass(frozen=True)
class Cpu:
    """`isa` picks the CPU kernels; `zig_cpu` is what `zig c++ -mcpu` takes; `flop_per_clock` is that of one core."""

    name: str
    zig_cpu: str
    isa: str
    features: tuple[str, ...]
    cores: int
    source: str
    l1d_bytes: int | None = None
    l2_bytes: int | None = None
    l3_bytes: int | None = None
    flop_per_clock: Rates = Rates()


@dataclass(frozen=True)
class Gpu:
    """`formats` are those of the tensor cores; `sm` is what nvcc 13 calls the architecture.

    `toolkit` is the CUDA release that assembles for every JetPack served, `elf_abi` the generation of cubin it writes,
    `ptx_version` the newest that the oldest driver served compiles. Without them no kernel of edgewm's is built for it.
    """

    name: str
    compute_capability: str
    sm: str
    formats: tuple[str, ...]
    shared_bytes_per_sm: int
    shared_bytes_per_block: int
    registers_per_sm: int
    threads_per_sm: int
    flop_per_sm_clock: Rates
    source: str
    l2_bytes: int | None = None
    blocks_per_sm: int | None = None
    toolkit: str = ""
    elf_abi: int | None = None
    ptx_version: str = ""


@dataclass(frozen=True)
class Memory:
    kind: str
    bytes: int
    source: str


@dataclass(frozen=True)
class Mode:
    """One power mode: what is switched on and how fast. MHz; `dram_gbps` is 10^9 bytes a second, advertised.

    `confidence`: one of CONFIDENCE, for the least certain of its figures.
    """

    name: str
    source: str
    confidence: str = ""
    number: int | None = None
    cpu_cores: int | None = None
    cpu_mhz: float | None = None
    sm: int | None = None
    gpu_mhz: float | None = None
    emc_mhz: float | None = None
    dram_gbps: float | None = None

    def is_named(self, name: str) -> bool:
        """Whether `name` is this mode's, however it is spelled."""
        return _spelling(name) == _spelling(self.name)


@dataclass(frozen=True)
class Measured:
    """One published or own measurement; without `mode` the report did not state it.

    `fact` is what estimates know it by: `stream_gbps`, `stream_int4_gbps`, `tensor_tflops FORMAT`, `graph_node_us`.
    """

    what: str
    value: float
    unit: str
    source: str
    mode: str | None = None
    fact: str = ""


@dataclass(frozen=True)
class Target:
    """One board. `robot` targets drive something: their bundles need a declared safe action."""

    name: str
    title: str
    default_mode: str
    robot: bool
    software: Software
    cpu: Cpu
    memory: Memory
    mode: tuple[Mode, ...]
    gpu: Gpu | None = None
    boards: str = ""
    aliases: tuple[str, ...] = ()
    measured: tuple[Measured, ...] = ()

    @property
    def isa(self) -> str:
        """Which CPU kernels run here: avx512, avx2, neon or scalar."""
        return self.cpu.isa

    @property
    def machine(self) -> str:
        """x86_64 or aarch64."""
        return self.software.triple.split("-")[0]

    @property
    def zig_triple(self) -> str:
        """What `zig c++ -target` takes, glibc version included."""
        return f"{self.software.triple}.{self.software.glibc}" if self.software.glibc else self.software.triple

    def has(self, fact: str) -> bool:
        """Whether the CPU has the feature, the GPU's tensor cores the format, or the board a `gpu`."""
        gpu = ("gpu", *self.gpu.formats) if self.gpu else ()
        return fact in self.cpu.features or fact in gpu

    def mode_named(self, name: str | None) -> Mode:
        """The power mode, by any case; None is the one the board boots in. EdgewmError names the modes there are."""
        for mode in self.mode:
            if mode.is_named(name or self.default_mode):
                return mode
        raise EdgewmError(
            f"{self.name} has no power mode {name!r}",
            "--mode",
            "choose one of " + ", ".join(m.name for m in self.mode) + f" (it boots in {self.default_mode})",
        )


def _spelling(mode: str) -> str:
    """A mode's name without case, spaces and the number that nvpmodel writes behind it."""
    return re.sub(r"\(\d+\)", "", mode).strip().upper().replace(" ", "_")


def compile_flags(target: Target, *features: str) -> tuple[str, ...]:
    """Of zig's C++ compiler for kernels on this target; with a macro for each of `features` that its CPU has.

    Such a feature goes beyond the level of the target's kernels and is called by zig as it is here.
    """
    present = [f for f in features if target.has(f)]
    cpu = "+".join((target.cpu.zig_cpu, *present))
    return ("-target", target.zig_triple, f"-mcpu={cpu}", *(f"-DEWM_{f.upper()}" for f in present))


def peak_flops(target: Target, mode: Mode, precision: str, unit: str) -> float | None:
    """Advertised peak of `unit` ("cpu" or "gpu") for a format of `Rates`, operations a second; None where unknown."""
    if unit == "gpu":
        rate = getattr(target.gpu.flop_per_sm_clock, precision) if target.gpu else None
        return rate * mode.sm * mode.gpu_mhz * 1e6 if rate and mode.sm and mode.gpu_mhz else None
    rate = getattr(target.cpu.flop_per_clock, precision)
    return rate * mode.cpu_cores * mode.cpu_mhz * 1e6 if rate and mode.cpu_cores and mode.cpu_mhz else None


# ---------------------------------------------------------------------------------------------- reading targets/*.toml


def _value(kind: Any, value: Any, where: str) -> Any:
    """`value` of a TOML file as the field type `kind`; nested tables become their dataclasses."""
    options = [k for k in get_args(kind) if k is not type(None)] if type(None) in get_args(kind) else [kind]
    kind = options[0]
    origin = getattr(kind, "__origin__", None)
    if is_dataclass(kind) and isinstance(value, dict):
        return _table(kind, value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_value(get_args(kind)[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    file, _, key = where.rpartition(": ")
    raise EdgewmError(f"{key} is {value!r}", file, f"write a {getattr(kind, '__name__', kind)}")


def _table(cls: type, table: dict, where: str) -> Any:
    """The dataclass `cls` from a TOML table; an unknown, missing or ill-typed key is refused."""
    kinds = get_type_hints(cls)
    file, _, path = where.partition(": ")
    inside = f"{path}." if path else ""
    for key in table:
        if key not in kinds:
            near = difflib.get_close_matches(key, kinds, 1)
            raise EdgewmError(
                f"unknown key {inside}{key}", file, f"did you mean {near[0]}?" if near else "keys: " + ", ".join(kinds)
            )
    for field in fields(cls):
        if field.name not in table and field.default is MISSING:
            raise EdgewmError(f"{inside}{field.name} is missing", file, f"add {inside}{field.name}")
    return cls(**{key: _value(kinds[key], value, f"{file}: {inside}{key}") for key, value in table.items()})


def load(path: Path) -> Target:
    """The target of one TOML file. Raises EdgewmError for an unknown, missing or ill-typed key."""
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as fault:
        raise EdgewmError(f"cannot read a target: {fault}", str(path), "repair the file") from fault
    target = _table(Target, table, str(path))
    if target.name != path.stem:
        raise EdgewmError(f"name is {target.name!r}", str(path), f"write name = {path.stem!r}, the file's own")
    allowed = ISAS.get(target.machine, ())
    if target.isa not in allowed:
        raise EdgewmError(f"cpu.isa is {target.isa!r}", str(path), f"write one of {', '.join(allowed)}")
    names = [mode.name for mode in target.mode]
    if target.default_mode not in names:
        raise EdgewmError(f"default_mode is {target.default_mode!r}", str(path), f"write one of {', '.join(names)}")
    return target


@cache
def targets() -> Mapping[str, Target]:
    """Every target of `targets/`, by name; `host` is not among them."""
    return MappingProxyType({path.stem: load(path) for path in sorted(TARGETS.glob("*.toml"))})


def resolve(name: str, mode: str | None = None, isa: str | None = None) -> tuple[Target, Mode]:
    """The target of that name or alias and its power mode (None: as the board boots).

    `isa` builds for less than the machine has: avx2 or scalar on an avx512 host. EdgewmError for a name, mode or isa
    that does not exist, with those that do.
    """
    wanted = name.lower().replace("_", "-")
    if wanted == "host":
        from .host import host

        target = host()
    else:
        spellings = {s.lower().replace("_", "-"): t for t in targets().values() for s in (t.name, *t.aliases)}
        if wanted not in spellings:
            near = difflib.get_close_matches(wanted, ["host", *spellings], 3)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            known = ", ".join(("host", *targets()))
            raise EdgewmError(f"no target is named {name!r}", "--target", f"{hint}`edgewm targets` lists them: {known}")
        target = spellings[wanted]
    if isa is not None:
        target = with_isa(target, isa)
    return target, target.mode_named(mode)


def with_isa(target: Target, isa: str) -> Target:
    """`target` restricted to the kernels of `isa`. EdgewmError when the machine does not have it."""
    levels = ISAS[target.machine]
    if isa not in levels or levels.index(isa) < levels.index(target.isa):
        allowed = ", ".join(levels[levels.index(target.isa) :])
        raise EdgewmError(f"{target.name} cannot run {isa!r} kernels", "--isa", f"choose one of {allowed}")
    if isa == target.isa:
        return target
    zig_cpu = X86_CPU[isa] if target.machine == "x86_64" else target.cpu.zig_cpu
    gone = {f for level in levels[: levels.index(isa)] for f in OF_ISA[level]}
    features = tuple(f for f in target.cpu.features if f not in gone)
    return replace(target, cpu=replace(target.cpu, isa=isa, zig_cpu=zig_cpu, features=features))


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if is_dataclass(value):
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in _given(value)) + " }"
    return json.dumps(value, ensure_ascii=False)  # strings, booleans and numbers are written alike in both


def _given(value: Any) -> list[tuple[str, Any]]:
    """Fields that say more than their default."""
    return [(f.name, getattr(value, f.name)) for f in fields(value) if getattr(value, f.name) != f.default]


def to_toml(target: Target) -> str:
    """The target as the text of a file of `targets/`: `load` of it gives the same value."""
    plain, tables = [], []
    for key, value in _given(target):
        if isinstance(value, tuple) and is_dataclass(value[0]):
            tables += [(f"[[{key}]]", row) for row in value]
        elif is_dataclass(value):
            tables.append((f"[{key}]", value))
        else:
            plain.append(f"{key} = {_toml(value)}")
    blocks = ["\n".join(plain)]
    blocks += ["\n".join([head, *(f"{k} = {_toml(v)}" for k, v in _given(table))]) for head, table in tables]
    return "\n\n".join(blocks) + "\n"


def to_dict(target: Target) -> dict[str, Any]:
    """The target as plain JSON values; figures nobody knows are null."""
    return asdict(target)

"""Boards: every file loads, is sane, survives writing; refusals say what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgewm.errors import EdgewmError
from edgewm.host import isa_and_features
from edgewm.paths import TARGETS
from edgewm.target import ISAS, load, peak_flops, resolve, targets, to_toml, with_isa

MINIMAL = """
name = "board"
title = "A board"
default_mode = "FULL"
robot = true
[software]
triple = "aarch64-linux-gnu"
glibc = "2.31"
source = "s"
[cpu]
name = "Cortex-A78AE"
zig_cpu = "cortex_a78ae"
isa = "neon"
features = ["neon", "dotprod"]
cores = 4
source = "s"
[memory]
kind = "LPDDR5"
bytes = 1024
source = "s"
[[mode]]
name = "FULL"
cpu_cores = 4
cpu_mhz = 1000
source = "s"
"""


def board(folder: Path, text: str) -> Path:
    path = folder / "board.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", sorted(targets()))
def test_every_board_is_sane(name: str) -> None:
    target = targets()[name]
    assert target.gpu is not None and target.robot == (target.machine == "aarch64")
    assert target.zig_triple.startswith(f"{target.machine}-linux-gnu.2.")
    assert (target.isa == "neon") == target.has("dotprod")
    assert len(name) <= 31, "a bundle's header holds 31 characters"
    for mode in target.mode:
        assert mode.source
        assert mode.cpu_cores is None or 1 <= mode.cpu_cores <= target.cpu.cores
        assert mode.dram_gbps is None or 10 < mode.dram_gbps < 10_000
        for unit, precision in (("cpu", "fp32"), ("gpu", "fp16"), ("gpu", "int8")):
            peak = peak_flops(target, mode, precision, unit)
            assert peak is None or 1e9 < peak < 1e16


@pytest.mark.parametrize("name", [*sorted(targets()), "host"])
def test_a_board_survives_writing(name: str, tmp_path: Path) -> None:
    target, _ = resolve(name)
    path = tmp_path / f"{target.name}.toml"
    path.write_text(to_toml(target))
    assert load(path) == target


def test_no_two_boards_share_a_name() -> None:
    names = [n.lower().replace("_", "-") for t in targets().values() for n in (t.name, *t.aliases)]
    assert len(names) == len(set(names)) and "host" not in names


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("orin", "jetson_agx_orin_64gb"), ("orin-64", "jetson_agx_orin_64gb"), ("jetson-orin", "jetson_agx_orin_64gb"),
        ("sm_87", "jetson_agx_orin_64gb"), ("orin-32", "jetson_agx_orin_32gb"), ("orin-nano", "jetson_orin_nano_8gb"),
        ("ORIN_NX", "jetson_orin_nx_16gb"), ("thor", "jetson_agx_thor_t5000"), ("sm_110", "jetson_agx_thor_t5000"),
        ("jetson-thor", "jetson_agx_thor_t5000"), ("host", "host"),
    ],
)  # fmt: skip
def test_names_people_use(alias: str, name: str) -> None:
    assert resolve(alias)[0].name == name


def test_orin_boots_with_a_quarter_of_its_peak() -> None:
    target, boots = resolve("orin")
    _, full = resolve("orin", "maxn")
    assert (boots.name, boots.sm, full.sm) == ("30W", 8, 16)
    assert peak_flops(target, full, "fp16", "gpu") == pytest.approx(42.6e12, rel=1e-3)
    assert 4.2 < peak_flops(target, full, "int8", "gpu") / peak_flops(target, boots, "int8", "gpu") < 4.3


def test_facts_instead_of_names() -> None:
    orin, thor, xavier = (resolve(n)[0] for n in ("orin", "thor", "xavier"))
    assert orin.has("dotprod") and not orin.has("i8mm") and not orin.has("fp8") and orin.has("gpu")
    assert thor.has("fp8") and thor.has("i8mm")
    assert not xavier.has("dotprod") and xavier.isa == "scalar"
    assert (orin.zig_triple, orin.cpu.zig_cpu) == ("aarch64-linux-gnu.2.31", "cortex_a78ae")


def test_host_is_filled_from_the_machine(cores: int) -> None:
    target, mode = resolve("host")
    assert target.cpu.cores == mode.cpu_cores == cores and target.memory.bytes > 1 << 28
    assert not target.robot and target.isa in ISAS[target.machine]


@pytest.mark.parametrize(
    ("machine", "flags", "isa"),
    [
        ("x86_64", "avx2 fma f16c avx512f avx512bw avx512cd avx512dq avx512vl avx512_vnni", "avx512"),
        ("x86_64", "avx2 fma f16c avx512f avx512bw avx512cd avx512dq avx512vl", "avx2"),
        ("x86_64", "avx2 fma", "scalar"),
        ("x86_64", "sse2", "scalar"),
        ("aarch64", "fp asimd asimdhp asimddp", "neon"),
        ("aarch64", "fp asimd", "scalar"),
    ],
)
def test_isa_of_a_cpu(machine: str, flags: str, isa: str) -> None:
    assert isa_and_features(machine, set(flags.split()))[0] == isa


def test_building_for_less_than_there_is() -> None:
    orin = with_isa(resolve("orin")[0], "scalar")
    assert orin.isa == "scalar" and not orin.has("dotprod") and orin.cpu.zig_cpu == "cortex_a78ae"
    host, _ = resolve("host", isa="scalar")
    assert host.isa == "scalar" and not {"avx2", "avx512", "dotprod"} & set(host.cpu.features)


@pytest.mark.parametrize(
    ("arguments", "what", "where", "fix"),
    [
        (("orinn",), "no target is named 'orinn'", "--target", "did you mean orin"),
        (("orin", "60W"), "jetson_agx_orin_64gb has no power mode '60W'", "--mode", "MAXN, 15W, 30W, 50W"),
        (("orin", None, "avx2"), "jetson_agx_orin_64gb cannot run 'avx2' kernels", "--isa", "neon, scalar"),
        (("xavier", None, "neon"), "jetson_agx_xavier cannot run 'neon' kernels", "--isa", "scalar"),
    ],
)
def test_refusals_name_what_there_is(arguments: tuple, what: str, where: str, fix: str) -> None:
    with pytest.raises(EdgewmError) as caught:
        resolve(*arguments)
    assert (caught.value.what, caught.value.where) == (what, where)
    assert fix in caught.value.fix


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("glibc", "glbic", "unknown key software.glbic"),
        ('isa = "neon"\n', "", "cpu.isa is missing"),
        ('bytes = 1024\nsource = "s"', "bytes = 1024", "memory.source is missing"),
        ("cores = 4\n", 'cores = "4"\n', "cpu.cores is '4'"),
        ('isa = "neon"', 'isa = "avx2"', "cpu.isa is 'avx2'"),
        ('name = "board"', 'name = "bored"', "name is 'bored'"),
        ('default_mode = "FULL"', 'default_mode = "HALF"', "default_mode is 'HALF'"),
        ("robot = true", "robot =", "cannot read a target"),
        ("cpu_mhz = 1000", "cpu_mhz = true", "cpu_mhz is True"),
    ],
)
def test_a_wrong_file_is_refused(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in MINIMAL
    with pytest.raises(EdgewmError) as caught:
        load(board(tmp_path, MINIMAL.replace(old, new, 1)))
    assert message in caught.value.what


def test_a_right_file_is_read(tmp_path: Path) -> None:
    target = load(board(tmp_path, MINIMAL))
    assert target.mode_named(None).cpu_mhz == 1000.0 and target.gpu is None and not target.has("gpu")


def test_every_file_is_named_after_maker_and_board() -> None:
    assert all(path.stem.startswith(("jetson_", "nvidia_")) for path in TARGETS.glob("*.toml"))

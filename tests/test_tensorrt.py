"""Engines on the device, with stand-ins for TensorRT 10 and 11 and for what reaches a GPU (`fake_tensorrt.py`)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from test_backends import MISSING, situation

from edgewm.build import build
from edgewm.errors import EdgewmError
from edgewm.manifest import read_manifest
from edgewm.target import resolve

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"{' and '.join(MISSING)} missing; pip install 'edgewm[onnx]'")
if not MISSING:
    import onnx
    from backend_bundles import PERIOD_NS, bundle, copy_of, signed, spoiled
    from fake_tensorrt import Device, install

    from edgewm.backends import onnx_parser, opened, tensorrt

GENERATIONS = {"10.3.0.30": {"6.2": ["10.3"]}, "10.16.2.10": {"7.2": ["10.16"]}, "11.4.1.5": {"7.2": ["11.4"]}}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where engines are kept, empty; bundles are built before there are stand-ins, which torch would find."""
    for precision in ("fp32", "w8a8"):
        for_any(precision)
    monkeypatch.setattr(tensorrt, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "tensorrt"


def planned(folder: Path) -> dict[str, np.ndarray]:
    """One plan of the bundle, by entry."""
    observation, goal = situation()
    with opened(folder, read_manifest(folder), 1, PERIOD_NS) as robot:
        given = {p.name: np.zeros(p.shape, p.dtype) for p in robot.ports("plan") if p.is_input}
        return robot.run_entry("plan", **{**given, **observation, **goal})


def for_any(precision: str = "fp32") -> Path:
    """A bundle for whatever TensorRT is there."""
    return bundle("tensorrt", precision)


@pytest.mark.parametrize("by", ("pycuda", "cuda"))
@pytest.mark.parametrize("version", ("10.3.0.30", "11.4.1.5"))
def test_engines_are_built_strongly_typed_held_to_golden_answers_and_kept(
    version: str, by: str, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    folder = for_any("w8a8")
    device = install(monkeypatch, Device(version), by)
    found = planned(folder)
    is_10 = version.startswith("10")
    networks = [call for call in device.calls if call[0] == "create_network"]
    assert networks == [("create_network", 2 if is_10 else 0)] * 2  # encode and iterate; nobody asked for other entries
    assert ("clear_flag", "TF32") in device.calls and "set_flag" not in device.names()
    assert [name for kind, *name in device.calls if kind == "parse"] == [["encode.onnx"], ["iterate.onnx"]]
    kept = sorted(cache.glob("*.plan"))
    assert len(kept) == 2 and all(p.name.startswith(f"sm8.7-{version}-") for p in kept)
    again = install(monkeypatch, Device(version), by)
    second = planned(folder)
    assert "build" not in again.names() and again.names().count("deserialize") == 2
    assert all(np.array_equal(found[name], second[name]) for name in found)
    wanted = planned(bundle(precision="w8a8"))  # the same program by ONNX Runtime, opset 20 in place of 18
    assert np.abs(found["actions"] - wanted["actions"]).max() < np.abs(wanted["std"]).max()


def test_an_engine_belongs_to_its_gpu_its_tensorrt_and_its_file(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    folder = for_any()
    for device in (Device("10.3.0"), Device("10.13.0"), Device("10.3.0", sm=(9, 0))):
        install(monkeypatch, device)
        planned(folder)
        assert device.names().count("build") == 2
    install(monkeypatch, device := Device("10.3.0"))
    planned(for_any("w8a8"))
    assert device.names().count("build") == 2 and len(list(cache.glob("*.plan"))) == 8


def test_an_engine_that_answers_otherwise_is_refused_and_not_kept(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    install(monkeypatch, Device(off=1.0))
    with pytest.raises(EdgewmError, match="is off by 1 from its golden answer"):
        planned(for_any())
    assert not cache.exists()
    install(monkeypatch, Device())
    planned(for_any())
    install(monkeypatch, Device(off=1.0))  # a kept one is looked at, too
    with pytest.raises(EdgewmError, match="is off by 1 from its golden answer"):
        planned(for_any())


def test_a_weight_that_is_another_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, Device())
    with pytest.raises(EdgewmError, match="from its golden answer") as fault:
        planned(spoiled(copy_of(for_any(), tmp_path)))
    assert "iterate.onnx by tensorrt" in fault.value.where


def test_a_kept_engine_with_other_bytes_is_not_loaded(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    install(monkeypatch, Device())
    planned(for_any())
    kept = min(cache.glob("*.plan"))
    good = kept.read_bytes()
    for spoil in (lambda: kept.write_bytes(good + b" "), lambda: kept.with_suffix(".json").unlink()):
        spoil()
        install(monkeypatch, device := Device())
        with pytest.raises(EdgewmError, match="the kept engine is not what was kept") as fault:
            planned(for_any())
        assert "deserialize" not in device.names() or kept.name not in fault.value.where
        kept.write_bytes(good)


def test_a_file_that_is_not_the_manifests_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, device := Device())
    folder = copy_of(for_any(), tmp_path)
    (folder / "iterate.onnx").write_bytes((folder / "iterate.onnx").read_bytes() + b"\0")
    with pytest.raises(EdgewmError, match=r"iterate\.onnx has SHA-256"):
        planned(folder)
    assert device.calls == []


def test_what_the_parser_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Device(refuses="TopK"))
    nodes = onnx.load(for_any() / "iterate.onnx", load_external_data=False).graph.node
    names = [n.name for n in nodes if n.op_type == "TopK"]
    with pytest.raises(EdgewmError) as fault:
        planned(for_any())
    assert all(f"TopK {name!r}: no importer for it" in fault.value.what for name in names)


def test_what_the_builder_says_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Device(builds=False))
    with pytest.raises(EdgewmError, match=r"TensorRT 10\.3\.0 builds no engine: no tactic for \w+\n"):
        planned(for_any())


def test_the_stand_in_needs_what_tensorrt_10_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the flag a network of eight bits builds no engine: the flag is what makes the test above pass."""
    install(monkeypatch, device := Device())
    trt = sys.modules["tensorrt"]
    made = trt.Builder.create_network
    monkeypatch.setattr(trt.Builder, "create_network", lambda self, flags: made(self, 0))
    with pytest.raises(EdgewmError, match="builds no engine"):
        onnx_parser.serialized(trt, for_any("w8a8") / "iterate.onnx")
    assert "build" in device.names()


FAULTS = {
    "loads": (r"does not load its engine: out of memory", "memory"),
    "runs": (r"TensorRT could not run: illegal access", "memory"),
    "named": (r"the engine has the ports .*other, ", "build the bundle again"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_engine_that_fails_is_told_by_message(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words, fix = FAULTS[fault]
    install(monkeypatch, Device(**{fault: False}))
    with pytest.raises(EdgewmError, match=words) as found:
        planned(for_any())
    assert fix in found.value.fix


VERSIONS = {
    "another minor": ("10.9.0", {"6.2": ["10.3"]}, r"10\.9\.0, the bundle is for 10\.3 \(JetPack 6\.2\)"),
    "another major": ("9.1.0", {}, r"this is TensorRT 9\.1\.0"),
    "a later major": ("12.0.0", {}, r"this is TensorRT 12\.0\.0"),
}


@pytest.mark.parametrize("case", VERSIONS)
def test_another_tensorrt_is_refused(case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    version, expected, words = VERSIONS[case]
    folder = copy_of(for_any(), tmp_path)
    signed(folder, build={**read_manifest(folder).raw["build"], "tensorrt": expected})
    install(monkeypatch, Device(version))
    with pytest.raises(EdgewmError, match=words):
        planned(folder)


@pytest.mark.parametrize("version", GENERATIONS)
def test_the_tensorrt_of_a_jetpack_is_taken(version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = copy_of(for_any(), tmp_path)
    signed(folder, build={**read_manifest(folder).raw["build"], "tensorrt": GENERATIONS[version]})
    install(monkeypatch, Device(version))
    assert np.all(np.isfinite(planned(folder)["actions"]))


def test_another_gpu_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = copy_of(for_any(), tmp_path)
    signed(folder, build={**read_manifest(folder).raw["build"], "sm": "8.7"})
    install(monkeypatch, Device(sm=(8, 9)))
    with pytest.raises(EdgewmError, match=r"this GPU is SM 8\.9, the bundle is for SM 8\.7"):
        planned(folder)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EdgewmError, match="tensorrt is not installed") as fault:
        planned(for_any())
    assert "apt install python3-libnvinfer" in fault.value.fix
    install(monkeypatch, Device(), by="nothing")
    with pytest.raises(EdgewmError, match="neither pycuda nor cuda-bindings is installed") as fault:
        planned(for_any())
    assert "pip install pycuda" in fault.value.fix
    install(monkeypatch, Device(sm=(0, 0)), by="cuda")
    with pytest.raises(EdgewmError, match=r"no GPU: cuda.bindings.driver says .*CUDA_ERROR_NO_DEVICE"):
        planned(for_any())


# ---------------------------------------------------------------------------------------------------------- the boards


def test_a_board_says_which_tensorrt_it_has() -> None:
    orin, thor, host = (tensorrt.recipe(resolve(name)[0]) for name in ("orin", "thor", "host"))
    assert orin["tensorrt"]["6.2"] == ["10.3"] and orin["sm"] == "8.7"
    assert thor["tensorrt"]["7.0"] == ["10.13"] and thor["sm"] == "11.0"
    assert host["tensorrt"] == {} and host["sm"] is None
    assert all(said["network"] == "strongly typed" and said["tf32"] is False for said in (orin, thor, host))


def test_a_board_without_tensorrt_10_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgewmError, match="no JetPack of jetson_agx_xavier has TensorRT 10 or later"):
        build("seen:lewm", backend="tensorrt", target="xavier", out=tmp_path / "out")


# ----------------------------------------------------------------------------------------------------- TensorRT for RTX


def rtx(device: Any, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The stand-in as `tensorrt_rtx`, which builds for named GPUs."""
    install(monkeypatch, device)
    module = sys.modules["tensorrt"]
    module.__name__ = onnx_parser.RTX
    module.ComputeCapability = type("ComputeCapability", (), {"SM86": "sm86", "SM120": "sm120"})
    made = module.Builder.create_builder_config

    def config(self: Any) -> Any:
        found = made(self)
        found.set_compute_capability = lambda which, i: device.calls.append(("capability", which, i))
        return found

    monkeypatch.setattr(module.Builder, "create_builder_config", config)
    monkeypatch.setitem(sys.modules, onnx_parser.RTX, module)
    return module


def test_tensorrt_for_rtx_checks_the_files_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = for_any()
    for capability, name in (("8.7", "SM86"), ("11.0", "SM120"), (None, "SM86")):
        rtx(device := Device("1.7.1"), monkeypatch)
        found = onnx_parser.checked([folder / "iterate.onnx"], capability)
        assert found == {"tensorrt_rtx": "1.7.1", "built_for": name, "in_place_of": capability or ""}
        assert ("capability", name.lower(), 0) in device.calls and ("create_network", 2) in device.calls
    rtx(Device("1.7.1", refuses="Softmax"), monkeypatch)
    with pytest.raises(EdgewmError, match="cannot read Softmax 'Softmax_"):
        onnx_parser.checked([folder / "iterate.onnx"], "8.7")


def test_a_build_is_not_checked_where_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, onnx_parser.RTX, None)
    assert onnx_parser.checked([], "8.7") == {}


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx missing; pip install tensorrt-rtx"
)
@pytest.mark.parametrize("precision", ("fp32", "w8a8"))
def test_nvidias_own_parser_and_builder_take_the_files(precision: str) -> None:
    folder = for_any(precision)
    found = onnx_parser.checked([folder / "encode.onnx", folder / "iterate.onnx"], "8.7")
    assert found["built_for"] == "SM86"

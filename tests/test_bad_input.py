"""Bad input as a user hands it over: three lines that say what, where and how to fix; nothing written, nothing lost.

What each part refuses by itself is in its own tests; here the command line refuses, and the disk is looked at after.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from fixtures_models import seeded
from safetensors.torch import load_file, save_file

from edgewm import build as building
from edgewm import cli
from edgewm.binding import Runtime
from edgewm.errors import EdgewmError

TESTS = Path(__file__).parent
EARLIER = b"an earlier bundle"
FLIPPED_BYTE = 150_000  # of a model.ewm, among its weights


def on_disk(folder: Path) -> dict[str, bytes | None]:
    """Every file with its bytes, every folder with None."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output directory with what an earlier build left."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "model.ewm").write_bytes(EARLIER)
    return folder


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Run a command line that must be refused without a change of the disk; the three lines as one text."""

    def run(*line: object) -> str:
        before = on_disk(tmp_path)
        assert cli.execute([str(word) for word in line]) == 2
        told = capsys.readouterr()
        assert told.out == "" and on_disk(tmp_path) == before
        lines = told.err.splitlines()
        assert [line.split(":")[0] for line in lines] == ["error", "  where", "  fix"]
        assert all(len(line.split(": ", 1)[1]) > 3 for line in lines)
        return told.err

    return run


# -------------------------------------------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def whole_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edgewm.reference.model import MODEL, PREPROCESSING, build, shipped_weights

    small = {"image_px": 16, "embed_dim": 16, "proj_dim": 32}
    sizes = {
        "encoder": {"depth": 1, "num_heads": 2, "mlp_ratio": 2.0},
        "predictor": {"depth": 1, "num_heads": 2, "head_dim": 8, "mlp_dim": 32},
    }
    config = {"model": MODEL | small | sizes, "preprocessing": PREPROCESSING}
    folder = tmp_path_factory.mktemp("whole")
    (folder / "config.json").write_text(json.dumps(config))
    save_file(shipped_weights(seeded(build(config))), folder / "weights.safetensors")
    return folder


def with_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        weights = load_file(folder / "weights.safetensors")
        change(weights)
        save_file(weights, folder / "weights.safetensors")

    return damage


def cut(folder: Path) -> None:
    os.truncate(folder / "weights.safetensors", 1000)


class Trap:
    def __reduce__(self) -> tuple:
        return sys.exit, (3,)


def pickled_object(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()
    (folder / "model_object.ckpt").write_bytes(pickle.dumps(Trap()))


def pickled_weights(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()
    torch.save(Trap(), folder / "weights.pt")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (with_weights(lambda w: w.pop("pos_embed")), "missing weight pos_embed (1 in all)"),
        (with_weights(lambda w: w.update(head=torch.zeros(3))), "unexpected weight head (1 in all)"),
        (
            with_weights(lambda w: w.update(pos_embed=torch.zeros(1, 3, 17))),
            "weight pos_embed has shape (1, 3, 17), config.json asks for (",
        ),
        (
            with_weights(lambda w: w.update(pos_embed=w["pos_embed"].int())),
            "weight pos_embed has dtype torch.int32",
        ),
        (with_weights(lambda w: w["pos_embed"].fill_(torch.nan)), "weight pos_embed holds NaN"),
        (with_weights(lambda w: w["pos_embed"].fill_(torch.inf)), "weight pos_embed holds Inf"),
        (cut, "not a safetensors file"),
        (pickled_object, "model_object.ckpt is a pickled checkpoint: loading it would run its code"),
        (pickled_weights, "a pickled module instead of a state dict: loading it would run its code"),
    ],
    ids=["missing", "extra", "shape", "dtype", "NaN", "infinity", "truncated", "pickle", "pickle in weights.pt"],
)
def test_a_checkpoint_that_does_not_fit_builds_nothing(
    damage: Callable[[Path], None], message: str, whole_checkpoint: Path, tmp_path: Path, out: Path, refused: Callable
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(whole_checkpoint, folder)
    damage(folder)
    told = refused("build", folder, "-o", out)
    assert message in told and str(folder) in told


# ------------------------------------------------------------------------------------------ targets and options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("tiny:lewm --target moon", "no target is named 'moon'"),
        ("tiny:lewm --target orin --mode 60W", "has no power mode '60W'"),
        ("tiny:lewm --precision fp7", "'fp7' is not one of 'fp32', 'bf16', 'bf16_all', 'w8a8'"),
        ("tiny:lewm --backend tvm", "'tvm' is not one of 'native', 'onnxruntime', 'tensorrt'"),
        ("tiny:lewm --backend onnxruntime --isa avx2", "onnxruntime runs its own kernels"),
        ("tiny:lewm --backend onnxruntime --precision bf16", "onnxruntime does not take bf16"),
        ("tiny:lewm --isa sse", "host cannot run 'sse' kernels"),
        ("tiny:lewm --heads depth", "the model has no head depth"),
        ("tiny:lewm --threads 65", "65 threads"),
        ("tiny:lewm --calibration recorded", "nothing of fp32 is calibrated"),
        ("tiny:lewm --precision w4a8", "there is nothing to plan from"),
        ("tiny:lewm --samples 1000000000", "GiB of candidates"),
        ("tiny:lewm --horizon 1000000", "a horizon of 1000000 model actions"),
        ("tiny:lewm --samples 4 --elites 5", "5 elites of 4 samples"),
        ("tiny:lewm --commit-steps 7", "7 committed periods exceed the plan of 6"),
        ("tiny:careless --target orin", "the action port 'action' declares no safe action"),
        ("tiny:nothing", "tiny has no 'nothing'"),
        ("nowhere", "no model 'nowhere'"),
    ],
)
def test_what_nobody_can_build_leaves_the_earlier_bundle(
    options: str, message: str, out: Path, refused: Callable
) -> None:
    assert message in refused("build", *options.split(), "-o", out)


def test_a_refused_build_makes_no_folders(tmp_path: Path, refused: Callable) -> None:
    assert "tiny has no 'nothing'" in refused("build", "tiny:nothing", "-o", tmp_path / "a" / "new" / "place")


def test_a_careless_model_builds_for_a_machine_that_moves_nothing(tmp_path: Path) -> None:
    assert cli.execute(["build", "tiny:careless", "--dry-run", "-o", str(tmp_path / "out")]) == 0
    assert on_disk(tmp_path) == {}


# ------------------------------------------------------------------------------------------------------- bundles


@pytest.fixture(scope="module")
def whole_bundle() -> Path:
    return tiny.bundle("host", "fp32")


def truncated(folder: Path) -> None:
    os.truncate(folder / "model.ewm", 100_000)


def mutated(folder: Path) -> None:
    data = bytearray((folder / "model.ewm").read_bytes())
    data[FLIPPED_BYTE] ^= 1
    (folder / "model.ewm").write_bytes(data)


def foreign(folder: Path) -> None:
    shutil.copy(folder / "libedgewm.so", folder / "model.ewm")


def gone(folder: Path) -> None:
    (folder / "model.ewm").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, "the file has 100000 bytes; expected "),
        (mutated, "section 'weights' has SHA-256 "),
        (foreign, "the file begins with b'\\x7fELF"),
        (gone, "no model.ewm"),
    ],
)
@pytest.mark.parametrize("verb", ["profile {}", "validate {} --against tiny:lewm", "run {}"])
def test_a_damaged_bundle_is_used_by_no_verb(
    verb: str, damage: Callable[[Path], None], message: str, whole_bundle: Path, tmp_path: Path, refused: Callable
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(whole_bundle, folder)
    damage(folder)
    told = refused(*verb.format(folder).split())
    assert message in told and str(folder) in told
    assert "build" in told.splitlines()[2]


@pytest.mark.skipif(platform.machine() == "aarch64", reason="this machine runs Orin's bundles")
@pytest.mark.parametrize("verb", ["profile {} --ticks 1", "validate {} --against tiny:lewm"])
def test_a_bundle_for_another_machine_is_refused_by_name(
    verb: str, whole_bundle: Path, tmp_path: Path, refused: Callable
) -> None:
    orin, mixed = tmp_path / "orin", tmp_path / "mixed"
    shutil.copytree(tiny.bundle("orin", "fp32"), orin)
    shutil.copytree(whole_bundle, mixed)
    shutil.copy(orin / "model.ewm", mixed)
    told = refused(*verb.format(orin).split())
    assert f"the bundle is for aarch64, this machine is {platform.machine()}" in told and "--target" in told
    told = refused(*verb.format(mixed).split())
    assert "model.ewm was built for another target: found target aarch64-neon" in told


# -------------------------------------------------------------------------------------------------- observations


@pytest.fixture
def robot(whole_bundle: Path) -> Iterator[tuple[Runtime, list[int]]]:
    clock = [10**12]
    with Runtime(whole_bundle, clock=lambda: clock[0]) as runtime:
        runtime.set_goal(goal=np.zeros((1, 16, 16, 3), np.uint8), goal_speed=np.zeros((1, 2), np.float32))
        yield runtime, clock


FRAME, STILL = np.full((1, 16, 16, 3), 90, np.uint8), np.zeros((1, 2), np.float32)


@pytest.mark.parametrize(
    ("speed", "message"),
    [
        (np.float32([[0, np.nan]]), "NaN or infinity in the input: found nan"),
        (np.float32([[-np.inf, 0]]), "NaN or infinity in the input: found -inf"),
        (np.float32([[0, 2.5]]), "input outside its port's range: found 2.5"),
        (np.zeros((1, 3), np.float32), "port 'speed' was given float32[1, 3]"),
        (np.zeros((1, 2)), "port 'speed' was given float64[1, 2]"),
    ],
)
def test_a_bad_observation_makes_no_plan(robot: tuple[Runtime, list[int]], speed: np.ndarray, message: str) -> None:
    """The declared bounds reach the runtime of a built bundle."""
    runtime, _ = robot
    with pytest.raises(EdgewmError) as refusal:
        runtime.observe(pixels=FRAME, speed=speed)
    assert message in refusal.value.what and refusal.value.where and refusal.value.fix
    with pytest.raises(EdgewmError, match="observation"):
        runtime.plan()
    assert runtime.stats()["published"] == 0 and runtime.act()[0].tolist() == [0, 0]
    runtime.observe(pixels=FRAME, speed=STILL)
    assert runtime.plan().generation == 1


def test_a_stale_observation_makes_no_plan(robot: tuple[Runtime, list[int]]) -> None:
    runtime, clock = robot
    runtime.observe(pixels=FRAME, speed=STILL)
    clock[0] += tiny.FRESH_NS + 1
    with pytest.raises(EdgewmError, match=f"stale observation: found {tiny.FRESH_NS + 1} ns old"):
        runtime.plan()
    runtime.observe(pixels=FRAME, speed=STILL)
    assert runtime.plan().generation == 1


# --------------------------------------------------------------------------------------- the place for the bundle


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_loaded(
    tmp_path: Path, out: Path, refused: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "capture", lambda *_: pytest.fail("the model was loaded"))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for place, message in (
        (tmp_path / "file", "the output is a file"),
        (tmp_path / "full", "the output directory holds other files"),
        (tmp_path / "file" / "out", "cannot write there: Not a directory"),
        (Path("/proc/edgewm/out"), "cannot write there: "),
    ):
        told = refused("build", "tiny:lewm", "-o", place)
        assert message in told and str(place) in told
    if os.geteuid() != 0:  # root writes anywhere
        out.parent.chmod(0o555)
        assert "cannot write there: Permission denied" in refused("build", "tiny:lewm", "-o", out)


def test_a_disk_that_fills_up_leaves_the_earlier_bundle(
    whole_bundle: Path, out: Path, refused: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(building, "_sync", no_space)  # the last step that can fail: all is written, nothing renamed
    told = refused("build", "tiny:lewm", "-o", out)
    assert "writing failed: No space left on device" in told and "free some space" in told and str(out) in told


def test_a_disk_that_fills_up_leaves_no_folders(tmp_path: Path) -> None:
    place = tmp_path / "a" / "new" / "place"
    with pytest.raises(EdgewmError, match="writing failed: No space left on device"), building.staging(place) as folder:
        (folder / "model.ewm").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert on_disk(tmp_path) == {}


def test_a_full_disk_is_told_and_left_clean(tmp_path: Path) -> None:
    """A real one: a file system of 100 kB in a mount namespace of its own, with an earlier bundle on it."""
    mount = f"mount -t tmpfs -o size=100k none {tmp_path}"
    namespace = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*namespace, mount], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount in a namespace of their own")
    prepare = f"{mount} && mkdir {tmp_path}/out && echo earlier > {tmp_path}/out/model.ewm"
    build = f"{sys.executable} -m edgewm build tiny:lewm -o {tmp_path}/out"
    look = f"find {tmp_path} -type f -exec grep -H . {{}} +"
    done = subprocess.run(
        [*namespace, f"{prepare}; {build}; echo status $?; {look}"], cwd=TESTS, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == ["status 2", f"{tmp_path}/out/model.ewm:earlier"]
    assert done.stderr.splitlines() == [
        "error: writing failed: No space left on device",
        f"  where: {tmp_path}/out",
        "  fix: free some space or give -o another place; nothing was changed",
    ]


def test_where_names_cannot_be_exchanged_a_failed_rename_gives_the_earlier_bundle_back(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = tmp_path / "new"
    new.mkdir()
    (new / "model.ewm").write_bytes(b"new")
    rename = os.rename

    def fails_for_new(source: Path, to: Path) -> None:
        if Path(source) == new:
            raise OSError(errno.EIO, "no")
        rename(source, to)

    monkeypatch.setattr(building, "_exchange", lambda a, b: False)
    with monkeypatch.context() as broken:
        broken.setattr(os, "rename", fails_for_new)
        with pytest.raises(OSError, match="no"):
            building.put(new, out)
    assert (out / "model.ewm").read_bytes() == EARLIER
    building.put(new, out)
    assert on_disk(tmp_path) == {"out": None, "out/model.ewm": b"new"}


def test_a_link_to_a_bundle_stays_a_link(tmp_path: Path, out: Path) -> None:
    link = tmp_path / "newest"
    link.symlink_to(out)
    with building.staging(link) as folder:
        (folder / "model.ewm").write_bytes(b"new")
        building.put(folder, link)
    assert link.is_symlink() and on_disk(tmp_path)["out/model.ewm"] == b"new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["newest", "out"]


# ------------------------------------------------------------------------------------------------ interruptions


def begun(out: Path, cache: Path) -> subprocess.Popen:
    """A build in a group of processes of its own, as a terminal makes it; with nothing compiled before.

    Interrupts are heard there, also where whoever runs these tests in the background has them ignored.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "edgewm", "build", "tiny:lewm", "-o", str(out)],
        cwd=TESTS, env={**os.environ, "XDG_CACHE_HOME": str(cache)}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def staged(out: Path) -> list[Path]:
    return list(out.parent.glob(f".{out.name}.building-*"))


def test_an_interrupted_build_leaves_the_earlier_bundle_and_the_next_one_clears_up(
    whole_bundle: Path, tmp_path: Path, out: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(out, other)
    places, signals = (out, other), (signal.SIGINT, signal.SIGKILL)
    builds = [begun(place, tmp_path / f"cache {place.name}") for place in places]
    until = time.monotonic() + 120
    while not all(map(staged, places)) and time.monotonic() < until and all(b.poll() is None for b in builds):
        time.sleep(0.01)
    assert all(map(staged, places))
    for build, number in zip(builds, signals, strict=True):
        os.killpg(build.pid, number)
    told = [build.communicate(timeout=120) for build in builds]
    assert [build.returncode for build in builds] == [130, -signal.SIGKILL]
    assert [(printed, error.strip()) for printed, error in told] == [("", "interrupted"), ("", "")]
    assert all(on_disk(place) == {"model.ewm": EARLIER} for place in places)
    assert not staged(out) and len(staged(other)) == 1  # nobody cleans up behind SIGKILL but the next build
    assert cli.execute(["build", "tiny:lewm", "-o", str(other)]) == 0
    assert not staged(other) and (other / "model.ewm").read_bytes() == (whole_bundle / "model.ewm").read_bytes()

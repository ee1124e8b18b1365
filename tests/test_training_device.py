"""Training somewhere else than on the host: the same bits on a stand-in for a GPU, which refuses what a GPU would."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import other_device
import pytest
import torch
from click.testing import CliRunner
from distill_world import LATENT, PLANNER, Spot
from fixtures_models import small_lewm, small_torch_world
from other_device import DEVICE, plain_attention, standing_in
from test_distill import SHAPE, SPOTS, lewm_teacher, small, spot
from test_proposal import seeded_for

from edgewm.cli import cli
from edgewm.distill import budgets, formulas, losses, processes, proposal, proposal_only, states, train, verb
from edgewm.distill.choice import Candidate
from edgewm.distill.devices import computing, device_of
from edgewm.distill.fake_quant import _product, _there
from edgewm.distill.material import Settings
from edgewm.distill.processes import Processes, backend_of
from edgewm.distill.shapes import briefly, config_of
from edgewm.distill.teacher import Teacher, teacher_of
from edgewm.errors import EdgewmError
from edgewm.judge.sides import upstream
from edgewm.passes.quantize_products import HOLD, value_of
from edgewm.quantize import fast
from edgewm.reference.model import build
from edgewm.rounding import UNIT_ROUNDOFF

PROPOSAL = proposal.Settings(contexts=3, steps=3, batch=4, width=8)
BRIEF = replace(PLANNER, iterations=1)
FEW = {
    "steps": 4, "round_steps": 2, "frames": 4, "round_frames": 2, "contexts": 2, "round_contexts": 2, "held_out": 1,
    "step_contexts": 2, "step_frames": 2,
}  # fmt: skip


def moved(teacher: Teacher, device: torch.device) -> Teacher:
    return teacher_of(teacher.name, teacher.model.on(device), teacher.planner, teacher.source)


def from_layers() -> tuple[Teacher, Settings]:
    """A student that begins with some of its teacher's layers, rounds, learns from all losses, and whose planner begins
    at a proposal."""
    teacher, shape = lewm_teacher(depth=2)
    planner, slim = replace(BRIEF, proposal=True), briefly(replace(shape, depth=1, heads=1, mlp_dim=16), 2)
    model = replace(teacher.model, proposal=seeded_for(teacher.model), planner=BRIEF)
    weights = dict.fromkeys(losses.TERMS, 0.1)
    asked = small(shape=slim, planner=planner, precision="w8a8", weights=weights, proposal=PROPOSAL, **FEW)
    return teacher_of(teacher.name, model, planner, teacher.source), asked


def from_pictures() -> tuple[Teacher, Settings]:
    """One that begins with nothing, sees by itself, jumps, and learns with products in bf16."""
    return spot(planner=BRIEF), small(shape=replace(SHAPE, jump=2), planner=BRIEF, mixed=True, **FEW)


STUDENTS = {made.__name__: made for made in (from_layers, from_pictures)}


def ended(out: Path) -> list[bytes]:
    """The last state of a run, its optimizer's included, and what is shipped."""
    state = states.kept(out / train.RUN)[-1] / states.TENSORS
    return [file.read_bytes() for file in (state, *sorted(out.glob("*.safetensors")))]


def formats_of(shape, model, planner, precision: str) -> dict[str, str]:
    """Of each kind one product after another."""
    if precision == "fp32":
        return {}
    modules = build(config_of(shape, model)).named_modules()
    linear = [name for name, m in modules if isinstance(m, torch.nn.Linear) and not name.startswith("enc")]
    kinds = ("w8a8", "bf16", "w4a8", "w4a16_g32")
    return {name: kinds[i % len(kinds)] for i, name in enumerate(linear)}


@pytest.fixture(autouse=True)
def known_formats(monkeypatch):
    monkeypatch.setattr(train, "formats_of", formats_of)


@pytest.fixture(scope="module", params=STUDENTS)
def on_host(request, tmp_path_factory) -> tuple[Teacher, Settings, Path]:
    """A teacher, settings, and where such a student was trained on the host, whole and half."""
    torch.set_num_threads(1)
    teacher, settings = STUDENTS[request.param]()
    out = tmp_path_factory.mktemp("host")
    with pytest.MonkeyPatch.context() as patch, plain_attention():
        patch.setattr(train, "formats_of", formats_of)
        train.train(settings, teacher, out / "half", stop_after=2)
        shutil.copytree(out / "half", out / "whole")
        train.train(settings, teacher, out / "whole", resume=True)
    return teacher, settings, out


def test_a_student_is_the_same_wherever_it_is_trained(on_host, tmp_path):
    """The teacher's answers, its own searches, what it is looked at by, and a run that was cut off included."""
    teacher, settings, host = on_host
    with standing_in() as device:
        there = moved(teacher, device)
        train.train(settings, there, tmp_path, stop_after=2)
        facts = train.train(settings, there, tmp_path, resume=True)
    assert ended(tmp_path) == ended(host / "whole") and facts["devices"] == [device.type]


def test_a_run_goes_on_elsewhere(on_host, tmp_path):
    teacher, settings, host = on_host
    out = shutil.copytree(host / "half", tmp_path / "out")
    with standing_in() as device:
        facts = train.train(settings, moved(teacher, device), out, resume=True)
    assert ended(out) == ended(host / "whole") and facts["devices"] == ["cpu", device.type]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
def test_a_gpu_trains_it_and_goes_on_with_what_the_host_began(on_host, tmp_path):
    teacher, settings, host = on_host
    out = shutil.copytree(host / "half", tmp_path / "out")
    there = moved(teacher, device_of("cuda"))
    facts = train.train(settings, there, out, resume=True)
    assert facts["devices"] == ["cpu", "cuda"] and facts["step"] == settings.steps
    assert train.train(settings, there, tmp_path / "whole")["history"][0].keys() == facts["history"][0].keys()


def with_host_candidates(answers, *args):
    given, theirs = answers(*args)
    return {**given, "candidates": given["candidates"].cpu()}, theirs


def with_host_moments(restore, run, *found):
    restore(run, *found)
    for state in run.optimizer.state.values():
        state["exp_avg"] = state["exp_avg"].cpu()


def wraps(fault, real):
    return lambda *args: fault(real, *args)


@pytest.mark.parametrize(
    ("where", "name", "fault"),
    [(train, "answers", with_host_candidates), (train.Run, "restore", with_host_moments)],
)
def test_what_is_left_on_the_host_is_caught(on_host, tmp_path, monkeypatch, where, name, fault):
    teacher, settings, host = on_host
    out = shutil.copytree(host / "half", tmp_path / "out")
    monkeypatch.setattr(where, name, wraps(fault, getattr(where, name)))
    with standing_in() as device, pytest.raises(RuntimeError, match="expected all tensors on the same device"):
        train.train(settings, moved(teacher, device), out, resume=True)


def test_products_that_stay_exact_are_caught(on_host, tmp_path, monkeypatch):
    """As they would under the host's autocast, or without rounding."""
    teacher, settings, host = on_host
    out = shutil.copytree(host / "half", tmp_path / "out")
    monkeypatch.setattr(other_device._Autocast, "lower", lambda self, x: x)
    monkeypatch.setattr(train, "rounded", lambda module, formats: nullcontext())
    with standing_in() as device:
        train.train(settings, moved(teacher, device), out, resume=True)
    assert ended(out)[0] != ended(host / "whole")[0]


def test_a_model_that_makes_tensors_of_its_own_elsewhere_is_refused(monkeypatch):
    encode = Spot.encode
    monkeypatch.setattr(Spot, "encode", lambda self, pixels: encode(self, pixels) + torch.zeros(1, LATENT))
    with standing_in() as device, pytest.raises(EdgewmError, match=r"the model does not run on meta: .*same") as fault:
        moved(spot(), device)
    assert "--device cpu" in fault.value.fix


@pytest.mark.parametrize("made", [small_lewm, small_torch_world])
def test_a_teacher_of_either_family_answers_the_same_wherever_it_is(made):
    model, rng = made(), np.random.default_rng(0)
    (camera,), planner = model.ports_of("observation"), model.planner
    picture = {camera.name: rng.integers(0, 256, camera.shape, np.uint8)}
    candidates = rng.standard_normal((3, planner.horizon, model.action_dim))

    def answers(there):
        side = upstream(there, planner)
        z = side.encode(picture)
        return z, side.score(z, 0.5 * z, candidates), side.predict(z[None, None], candidates[:1, :1])

    with plain_attention():
        own = answers(model)
    with standing_in() as device:
        its = answers(model.on(device))
    assert all(np.array_equal(a, b) for a, b in zip(own, its, strict=True))


def test_a_proposal_is_the_same_wherever_it_is_trained_and_comes_back(monkeypatch):
    monkeypatch.setattr(budgets, "CONTEXTS", 2)
    teacher, few = spot(), replace(PLANNER, samples=6, elites=2)

    def trained(device):
        model, worth = proposal_only.with_trained("spot", teacher.model, SPOTS, None, PROPOSAL, None, None, device)
        lost = budgets.regret(moved(replace(teacher, model=model), device), 0)(moved(teacher, device).side, few)
        return model.proposal.state_dict(), worth, lost

    own, worth, lost = trained(torch.device("cpu"))
    with standing_in() as device:
        its, its_worth, its_loss = trained(device)
    assert all(torch.equal(own[key], its[key]) and its[key].device.type == "cpu" for key in own)
    assert its_worth == worth and its_loss == lost


def test_the_verb_trains_where_it_is_told_to(monkeypatch, tmp_path):
    best, seen = Candidate(SHAPE, "fp32", BRIEF, {"high": 1.0}, "nothing"), []

    def decided(full, source, board, asked, begun, every, device, progress):
        seen.append(device)
        return {**verb._told(asked, [best.as_json()]), "chosen": best.as_json()}

    def trained(settings, teacher, out, *, share, **options):
        seen.extend((teacher.model.device, share.device))
        raise EdgewmError("enough", "", "")

    stubs = {"decided": decided, "train": trained, "tick": lambda *a: best, "check_fit": lambda teacher: {}}
    for name, stub in stubs.items():
        monkeypatch.setattr(verb, name, stub)
    monkeypatch.setattr(processes, "device_of", lambda asked, local, beside: DEVICE if asked == "cuda" else None)
    with standing_in() as device, pytest.raises(EdgewmError, match="enough"):
        verb.distill("distill_world:make", target="orin", rate_hz=1.0, device="cuda", out=tmp_path / "out")
    assert seen == [device] * 3


# ------------------------------------------------------------------------------------------------- rounded products


@pytest.mark.parametrize("form", sorted(HOLD))
def test_products_are_rounded_in_torch_as_in_numpy(form):
    """Bit for bit, where sums are of integers; rows of zeros, of one sign, with an infinity and with a NaN included."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((9, 37), np.float32), rng.standard_normal((37, 5), np.float32)
    x[0], x[1], x[2], x[3, 1], x[4, 2] = 0.0, np.abs(x[1]), -np.abs(x[2]), np.inf, np.nan
    graph, held = _product(form, *x.shape, w.shape[1]), HOLD[form].hold(w, None)
    leaves = dict(zip(HOLD[form].parts, held, strict=True))
    with np.errstate(invalid="ignore"):
        known = fast.values_of(graph, {"x": x}, leaves)[graph.outputs["y"]]
    given = {name: _there(part, torch.device("cpu")) for name, part in leaves.items()}
    found = formulas.values_of(graph, {"x": torch.from_numpy(x), **given})["y"].numpy()
    if held[0].dtype == np.int8:
        assert np.array_equal(found, known, equal_nan=True)
    else:
        finite = np.isfinite(x).all(1)
        rounding = 2 * len(w) * UNIT_ROUNDOFF * (np.abs(x[finite]) @ np.abs(value_of(held, form)))  # of each side's sum
        assert (np.abs(found[finite] - known[finite]) <= rounding).all()
        assert np.array_equal(np.isnan(found), np.isnan(known))


# ---------------------------------------------------------------------------------------------- which device it is


@pytest.fixture
def gpus(monkeypatch):
    def there_are(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return there_are


@pytest.mark.parametrize(
    ("count", "asked", "local", "beside", "expected"),
    [
        (0, "auto", 0, 1, "cpu"), (0, "auto", 3, 4, "cpu"), (2, "auto", 0, 1, "cuda:0"), (2, "cpu", 1, 4, "cpu"),
        (2, "cuda", 1, 2, "cuda:1"), (4, "auto", 2, 3, "cuda:2"), (2, "cuda:1", 0, 1, "cuda:1"),
    ],
)  # fmt: skip
def test_each_process_has_a_gpu_of_its_own_where_there_are_any(gpus, count, asked, local, beside, expected):
    gpus(count)
    assert device_of(asked, local, beside) == torch.device(expected)


@pytest.mark.parametrize(
    ("count", "asked", "beside", "what", "fix"),
    [
        (0, "cuda", 1, r"torch \S+ finds no GPU", "pip install --force-reinstall torch"),
        (0, "cuda:1", 1, "finds no GPU", "--device cpu"),
        (2, "auto", 3, "3 processes, and this machine has 2 GPUs", "start at most 2 here"),
        (1, "cuda", 2, "2 processes, and this machine has 1 GPU\n", "start at most 1 here"),
        (2, "cuda:2", 1, "there is no GPU 2, and this machine has 2 GPUs", "a number below 2"),
        (2, "cuda:1", 2, "2 processes on one GPU", "each process takes its own"),
        (2, "gpu", 1, "no device 'gpu'", "cuda:1"),
        (2, "cuda:", 1, "no device 'cuda:'", "auto, cpu"),
    ],
)
def test_devices_that_are_not_there(gpus, count, asked, beside, what, fix):
    gpus(count)
    with pytest.raises(EdgewmError, match=what) as fault:
        device_of(asked, 0, beside)
    assert fix in fault.value.fix and "--device" in fault.value.where


def test_what_torchrun_says_decides_which_gpu(gpus, monkeypatch):
    gpus(2)
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    share, made = Processes.here("auto"), []
    assert (share.rank, share.count, share.device) == (3, 4, torch.device("cuda:1"))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, timeout: made.append(backend))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    for each in (share, Processes.here()):
        with each:
            pass
    assert made == ["cpu:gloo,cuda:nccl", "gloo"] and backend_of(DEVICE) == "cpu:gloo,meta:nccl"


def test_what_is_computed_on_a_gpu_leaves_nothing_changed_and_a_full_memory_is_told(monkeypatch):
    chosen, before = [], torch.backends.cudnn.allow_tf32
    monkeypatch.setattr(torch.cuda, "device", lambda device: chosen.append(device) or nullcontext())
    told = pytest.raises(EdgewmError, match="the memory of cuda:1 is full: so many GiB")
    with computing(torch.device("cpu")), told, computing(torch.device("cuda:1")):
        assert not torch.backends.cudnn.allow_tf32
        raise torch.OutOfMemoryError("so many GiB\nand advice")
    assert torch.backends.cudnn.allow_tf32 == before and chosen == [torch.device("cuda:1")]


@pytest.mark.parametrize("words", [("--rate-hz", "20"), ("--proposal-only",)], ids=" ".join)
def test_the_command_line_refuses_a_gpu_that_is_not_there(gpus, tmp_path, words):
    gpus(0)
    out = tmp_path / "out"
    found = CliRunner().invoke(cli, ["distill", "reference", *words, "--device", "cuda", "-o", str(out)])
    assert "finds no GPU" in str(found.exception) + found.output and not out.exists()


# ------------------------------------------------------------------------------------------------- the stand-in


REFUSED = {
    "sums of both sides": lambda x: x + torch.ones(2),
    "a list of both sides": lambda x: torch.stack([x, torch.ones(2)]),
    "numbers of the host in a list": lambda x: torch.cat([x, torch.ones(1)]),
    "a product of both sides": lambda x: x @ torch.ones(2),
    "an index of the other side": lambda x: torch.ones(3)[x.long()],
    "an index of the host that gathers": lambda x: x.gather(0, torch.zeros(1, dtype=torch.long)),
    "numpy's view": lambda x: x.numpy(),
    "numpy's own way to it": np.asarray,
    "in place, of the other side": lambda x: torch.zeros(2).add_(x),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_stand_in_refuses_what_cuda_does(name):
    with standing_in() as device, pytest.raises((RuntimeError, TypeError), match=r"same device|numpy"):
        REFUSED[name](torch.ones(2, device=device))


def test_the_stand_in_takes_what_cuda_does():
    with standing_in() as device:
        x = torch.tensor([1.0, 2.0], device=device)
        found = [x * torch.tensor(2.0), x[torch.tensor([1, 0])], torch.where(x > 1, x, torch.tensor(0.0)), x.to("cpu")]
        assert [y.tolist() for y in found] == [[2.0, 4.0], [2.0, 1.0], [0.0, 2.0], [1.0, 2.0]]
        assert [y.device.type for y in found] == ["meta", "meta", "meta", "cpu"]
        x.copy_(torch.tensor([3.0, 4.0]))
        assert float(x.sum()) == 7.0 and torch.zeros(3, device=device).tolist() == [0.0] * 3

"""Where models come from: upstream's own numbers, and every refusal by its message."""

from __future__ import annotations

import dataclasses
import json
import pickle
import sys
from pathlib import Path

import fixtures_models as fixtures
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgewm.build import build
from edgewm.errors import EdgewmError
from edgewm.interp import run
from edgewm.manifest import read_manifest
from edgewm.models import Model, capture_model, load, stable_worldmodel, synthetic
from edgewm.program import Planner, Port

GOLDEN = Path(__file__).parent / "golden" / "lewm_upstream.safetensors"
SIZES = {
    "image_px": 16, "patch_px": 8, "latent": 16, "depth": 2, "heads": 2, "dim_head": 12, "mlp_dim": 32, "proj_dim": 24,
    "action_dim": 4, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
}  # fmt: skip


def recorded() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights under the names of transformers 4, and what stable-worldmodel 0.1.1's own modules answered in float64."""
    found = load_file(GOLDEN)
    upstream = {k.removeprefix("upstream/"): v for k, v in found.items() if k.startswith("upstream/")}
    return {k: v for k, v in found.items() if not k.startswith("upstream/")}, upstream


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(synthetic.config(**SIZES)))
    save_file(recorded()[0], tmp_path / "weights.safetensors")
    return tmp_path


def change(path: Path, **weights: torch.Tensor | None) -> None:
    """Replace weights of the checkpoint (dots as double underscores); None removes one."""
    found = load_file(path / "weights.safetensors")
    for name, tensor in weights.items():
        found.pop(name.replace("__", "."), None)
        if tensor is not None:
            found[name.replace("__", ".")] = tensor
    save_file(found, path / "weights.safetensors")


def configure(path: Path, keys: str, value: object) -> None:
    """Set one key of config.json, dots between levels."""
    config = json.loads((path / "config.json").read_text())
    *sections, last = keys.split(".")
    section = config
    for name in sections:
        section = section[name]
    section[last] = value
    (path / "config.json").write_text(json.dumps(config))


def refusal(spec: object) -> str:
    with pytest.raises(EdgewmError) as caught:
        load(str(spec))
    return str(caught.value)


def matches_upstream(model: Model) -> None:
    _, upstream = recorded()
    module = model.torch.double()
    with torch.no_grad():
        z = model.encode(module, upstream["pixels"])
        cost = model.score(module, z[:1], z[1:], upstream["actions"].double())
        imagined = module.rollout(z[:1].expand(len(cost), 1, -1), upstream["actions"].double())
    for found, wanted in ((z, "z"), (cost, "cost"), (imagined, "imagined")):
        assert fixtures.relative_error(found.numpy(), upstream[wanted]) < 1e-13, wanted
    module.float()


def test_a_published_checkpoint_answers_as_upstream_does(checkpoint: Path) -> None:
    model = load(str(checkpoint))
    assert model.family == "stable_worldmodel.lewm" and (model.window, model.latent_dim, model.action_dim) == (3, 16, 4)
    assert set(model.files) == {"config.json", "weights.safetensors"} and all(
        len(h) == 64 for h in model.files.values()
    )
    matches_upstream(model)


def test_weights_pt_and_transformers_5_names_load_alike(checkpoint: Path) -> None:
    weights = stable_worldmodel.rename(recorded()[0])
    assert "encoder.layers.0.attention.q_proj.weight" in weights and "encoder.layers.1.layernorm_after.bias" in weights
    assert not any(name.startswith("encoder.encoder") for name in weights)
    (checkpoint / "weights.safetensors").unlink()
    torch.save(weights | {"pred_proj.net.1.num_batches_tracked": torch.tensor(7)}, checkpoint / "weights_epoch_9.pt")
    torch.save({}, checkpoint / "weights_epoch_8.pt")
    model = load(str(checkpoint / "weights_epoch_9.pt"))
    assert set(model.files) == {"config.json", "weights_epoch_9.pt"}
    matches_upstream(model)


def test_half_precision_weights_and_mask_tokens_load(checkpoint: Path) -> None:
    save_file({k: v.half() for k, v in recorded()[0].items()}, checkpoint / "weights.safetensors")
    change(checkpoint, encoder__embeddings__mask_token=torch.zeros(1, 1, 16))
    assert load(str(checkpoint)).torch.predictor.pos_embedding.dtype == torch.float32


def test_the_captured_program_answers_as_upstream_does(checkpoint: Path) -> None:
    planner = Planner(samples=4, iterations=2, elites=2, horizon=5, action_block=2, commit_steps=2)
    program = capture_model(load(str(checkpoint)), planner)
    assert list(program.entries) == ["encode", "predict_1", "predict_2", "predict", "score", "plan", "plan_with_noise"]
    _, upstream = recorded()
    latents = []
    for i in range(2):
        entry = program.entries["encode"]
        latents.append(run(entry, {"pixels": upstream["pixels"][i : i + 1].numpy()}, program.weights)["z"])
        bound = fixtures.rounding(entry, np.float32)
        assert fixtures.relative_error(latents[i], upstream["z"][i : i + 1]) <= bound
    inputs = {"z": latents[0], "goal": latents[1], "candidates": upstream["actions"].numpy()}
    cost = run(program.entries["score"], inputs, program.weights)["cost"]
    # the cost squares a difference of latents: their error enters twice, and again through the rollout
    assert fixtures.relative_error(cost, upstream["cost"]) <= 2 * (
        bound + fixtures.rounding(program.entries["score"], np.float32)
    )


def test_full_size_counts_its_parameters() -> None:
    module, image_px, action_dim = stable_worldmodel.build(synthetic.config(), "here")
    assert sum(t.numel() for t in module.state_dict().values()) == 18_042_672
    assert (image_px, action_dim) == (224, 10)


def test_synthetic_weights_are_seeded_and_depend_on_actions() -> None:
    model, again = fixtures.small_lewm(), fixtures.small_lewm()
    assert all(torch.equal(a, b) for a, b in zip(model.torch.parameters(), again.torch.parameters(), strict=True))
    z, goal = torch.ones(1, 16), torch.zeros(1, 16)
    with torch.no_grad():
        cost = model.score(model.torch, z, goal, torch.randn(8, 3, 2, generator=torch.Generator().manual_seed(0)))
    assert float(cost.std() / cost.mean()) > 0.01


def test_torch_world_checkpoint_loads(tmp_path: Path) -> None:
    from edgewm.reference.model import MODEL, PREPROCESSING, build, shipped_weights

    small = {"image_px": 16, "embed_dim": 16, "proj_dim": 32}
    sizes = {
        "encoder": {"depth": 1, "num_heads": 2, "mlp_ratio": 2.0},
        "predictor": {"depth": 1, "num_heads": 2, "head_dim": 8, "mlp_dim": 32},
    }
    config = {"model": MODEL | small | sizes, "preprocessing": PREPROCESSING}
    module = fixtures.seeded(build(config))
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(shipped_weights(module), tmp_path / "weights.safetensors")
    model = load(str(tmp_path))
    assert model.family == "torch_world.lewm" and model.action_dim == 10 and model.window == 3
    action = model.ports_of("action")[0]
    assert action == Port("action", "action", (2,))  # nobody has described its robot
    assert model.planner.low is None and (model.planner.action_block, model.planner.commit_steps) == (5, 5)
    (tmp_path / "robot.json").write_text('{"action": {"safe": [0, 0]}, "rate_hz": 20}')
    assert load(str(tmp_path)).ports_of("action") == (Port("action", "action", (2,), safe=(0.0, 0.0), rate_hz=20.0),)
    (tmp_path / "robot.json").write_text('{"action_block": 2}')
    assert "action_block is 2, config.json says 5" in refusal(tmp_path)
    (tmp_path / "robot.json").unlink()
    change(tmp_path, pos_embed=None)
    assert "missing weight pos_embed (1 in all)" in refusal(tmp_path)


def test_the_reference_loads_by_its_word() -> None:
    model = load("reference")
    action = model.ports_of("action")[0]
    assert model.family == "torch_world.lewm" and model.planner.action_block * action.shape[0] == model.action_dim
    assert (action.control, action.unit, action.safe) == ("velocity", "0.2 m/s", (0.0, 0.0))
    assert (action.low, action.high) == (-1.0, 1.0) and all(p.rate_hz == 10.0 for p in model.ports)
    assert model.planner == Planner(
        samples=128, iterations=8, elites=12, horizon=5, action_block=5, commit_steps=10, low=-1.0, high=1.0,
        first_candidate_is_mean=False,
    )  # fmt: skip
    assert set(model.files) == {"config.json", "robot.json", "weights.safetensors"}


# --------------------------------------------------------------------------------------------------------- robot.json


def describe(path: Path, **keys: object) -> Path:
    (path / "robot.json").write_text(json.dumps(keys))
    return path


ROBOT = {
    "action": {
        "control": "velocity", "unit": "m/s", "low": -2, "high": 2, "slew": 0.5, "safe": [0, 0.5], "scale": [2, 1.5],
        "offset": [0, 0.5],
    },
    "rate_hz": 10, "action_block": 2, "max_age_ms": 150,
    "planner": {"samples": 8, "iterations": 2, "elites": 3, "horizon": 2, "commit_steps": 3, "low": -1, "high": 1},
}  # fmt: skip


def test_robot_json_describes_the_robot_of_a_checkpoint(checkpoint: Path) -> None:
    bare = load(str(checkpoint))
    model = load(str(describe(checkpoint, **ROBOT)))
    (action,), (camera,) = model.ports_of("action"), model.ports_of("observation")
    assert action.shape == (2,) and (action.control, action.unit, action.slew) == ("velocity", "m/s", 0.5)
    assert (action.low, action.high, action.safe) == (-2.0, 2.0, (0.0, 0.5))
    assert (action.scale, action.offset, action.rate_hz) == ((2.0, 1.5), (0.0, 0.5), 10.0)
    assert (camera.rate_hz, camera.max_age_ns, camera.shape) == (10.0, 150_000_000, (1, 16, 16, 3))
    search = {"samples": 8, "iterations": 2, "elites": 3, "horizon": 2, "commit_steps": 3, "low": -1.0, "high": 1.0}
    assert model.planner == dataclasses.replace(bare.planner, action_block=2, **search)
    assert model.files.items() > bare.files.items() and len(model.files["robot.json"]) == 64
    assert load(str(checkpoint / "config.json")).ports == model.ports
    assert load(str(describe(checkpoint, action_block=1))).planner.commit_steps == bare.planner.horizon


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"speed": 1}, "unknown key 'speed'"),
        ({"action": {"limit": 1}}, "unknown key 'limit'"),
        ({"planner": {"action_block": 3}}, "unknown key 'action_block'"),
        ({"planner": [1]}, "[1] where an object is wanted"),
        ({"action": {"safe": [0, 0, 0]}}, "safe is [0, 0, 0]"),
        ({"action": {"scale": 2}}, "scale is 2"),
        ({"action": {"safe": [0, "1"]}}, "safe is '1'"),
        ({"action": {"low": float("nan")}}, "low is nan"),
        ({"action": {"high": 10**400}}, "high is 1000"),
        ({"action": {"offset": [0, float("inf")]}}, "offset is inf"),
        ({"action": {"low": 1, "high": 1}}, "limits are [1, 1]"),
        ({"action": {"high": 1, "safe": [0, 2]}}, "safe is [0.0, 2.0], the limits are [-inf, 1]"),
        ({"action": {"slew": -1}}, "slew is -1"),
        ({"action": {"scale": [1, 0]}}, "scale holds 0"),
        ({"action": {"control": "thought"}}, "control is 'thought'"),
        ({"action": {"unit": 3}}, "unit is 3"),
        ({"action_block": 3}, "action_block is 3, a model action has 4 numbers"),
        ({"action_block": 2.0}, "action_block is 2.0"),
        ({"rate_hz": 0}, "rate_hz is 0"),
        ({"rate_hz": True}, "rate_hz is True"),
        ({"max_age_ms": -1}, "max_age_ms is -1"),
        ({"planner": {"samples": 8}}, "30 elites of 8 samples"),
        ({"planner": {"commit_steps": 11}}, "11 committed periods exceed the plan of 10"),
        ({"planner": {"kind": "gradient"}}, "no planner of kind 'gradient'"),
        ({"planner": {"warm_start": 1}}, "warm_start is 1"),
    ],
)
def test_robot_json_is_held_to_what_it_may_say(checkpoint: Path, keys: dict, message: str) -> None:
    told = refusal(describe(checkpoint, **({"action_block": 2} | keys)))
    assert message in told and str(checkpoint / "robot.json") in told


def test_a_robot_json_that_is_none_is_refused(checkpoint: Path) -> None:
    for text, message in (("{", "robot.json is not JSON"), ("[]", "robot.json holds no object")):
        (checkpoint / "robot.json").write_text(text)
        assert message in refusal(checkpoint)
    (checkpoint / "robot.json").unlink()
    (checkpoint / "robot.json").mkdir()
    assert "robot.json cannot be read" in refusal(checkpoint)


def test_a_published_checkpoint_gets_onto_an_orin_with_its_robot(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "orin"
    keys = {k: v for k, v in ROBOT.items() if k != "action"}
    for action in ({}, {"control": "velocity"}):
        with pytest.raises(EdgewmError, match="declares no safe action") as caught:
            build(str(describe(checkpoint, **keys, action=action)), target="orin", out=out)
        assert "safe=(...) of 2 numbers" in caught.value.fix and "action.safe in robot.json" in caught.value.fix
    assert not out.exists()
    built = build(str(describe(checkpoint, **ROBOT)), target="orin", out=out, threads=1)
    manifest = read_manifest(out)
    assert built["sha256"] == manifest.sha256 and manifest.rate_hz == 10.0
    assert manifest.ports_of("action")[0].safe == (0.0, 0.5) and "robot.json" in manifest.raw["model_sha256"]


# ------------------------------------------------------------------------------------------------------------- refusals


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    assert "no model 'nowhere'" in refusal("nowhere") and "the word reference" in refusal("nowhere")
    assert "no config.json" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "config.json is not JSON" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    assert "config.json holds no object" in refusal(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vjepa2", "hidden_size": 4}')
    message = refusal(tmp_path)
    assert "describes no known family (its keys: hidden_size, model_type)" in message and "module:function" in message


def test_weights_must_fit(checkpoint: Path) -> None:
    where = str(checkpoint / "weights.safetensors")
    change(checkpoint, projector__net__0__bias=None)
    assert "missing weight projector.net.0.bias (1 in all)" in refusal(checkpoint) and where in refusal(checkpoint)
    change(checkpoint, projector__net__0__bias=torch.zeros(24), head__bias=torch.zeros(3))
    assert "unexpected weight head.bias (1 in all)" in refusal(checkpoint)
    change(checkpoint, head__bias=None, projector__net__0__bias=torch.zeros(25))
    message = refusal(checkpoint)
    assert "weight projector.net.0.bias has shape (25,), config.json asks for (24,)" in message
    change(checkpoint, projector__net__0__bias=torch.zeros(24, dtype=torch.int32))
    assert "weight projector.net.0.bias has dtype torch.int32" in refusal(checkpoint)
    change(checkpoint, projector__net__0__bias=torch.full((24,), torch.nan))
    assert "weight projector.net.0.bias holds NaN" in refusal(checkpoint)


def test_damaged_and_missing_files_are_refused(checkpoint: Path) -> None:
    file = checkpoint / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert "not a safetensors file" in refusal(checkpoint)
    file.unlink()
    assert "no weights" in refusal(checkpoint)
    (checkpoint / "weights.pt").write_bytes(b"")
    assert "not a torch file" in refusal(checkpoint)
    torch.save(torch.zeros(3), checkpoint / "weights.pt")
    assert "no state dict inside" in refusal(checkpoint)
    (checkpoint / "weights.pt").unlink()
    for name in ("a.pt", "b.pt"):
        torch.save({}, checkpoint / name)
    assert "2 weights files, none named weights.pt" in refusal(checkpoint)


def test_pickles_are_refused_without_running_them(checkpoint: Path) -> None:
    class Trap:
        def __reduce__(self):
            return (sys.exit, (3,))

    (checkpoint / "weights.safetensors").unlink()
    (checkpoint / "lewm_object.ckpt").write_bytes(pickle.dumps(Trap()))
    message = refusal(checkpoint)
    assert (
        "lewm_object.ckpt is a pickled checkpoint: loading it would run its code" in message and "state_dict" in message
    )
    torch.save(Trap(), checkpoint / "weights.pt")
    assert "a pickled module instead of a state dict" in refusal(checkpoint)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        ("_target_", "os.system", "the top level has _target_ 'os.system', which edgewm does not know"),
        ("encoder._target_", "timm.create_model", "encoder has _target_ 'timm.create_model'"),
        ("predictor._target_", "builtins.eval", "predictor has _target_ 'builtins.eval'"),
        ("projector.norm_fn._target_", "torch.nn.InstanceNorm1d", "projector.norm_fn is 'torch.nn.InstanceNorm1d'"),
        ("projector.act_fn", {"_target_": "torch.nn.ReLU"}, "projector.act_fn is"),
        ("predictor.window", 4, "predictor has unknown 'window'"),
        ("predictor.depth", "six", "predictor.depth is 'six'"),
        ("encoder.size", "gigantic", "encoder.size is 'gigantic'"),
        ("encoder.patch_size", 7, "encoder of 16 px in patches of 7"),
        ("action_encoder", None, "action_encoder is no object with a _target_"),
        ("extra", 1, "the top level has unknown 'extra'"),
    ],
)
def test_configs_are_held_to_the_known_targets(checkpoint: Path, keys: str, value: object, message: str) -> None:
    configure(checkpoint, keys, value)
    assert message in refusal(checkpoint)


def test_a_config_that_lacks_a_part_is_refused(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    del config["predictor"]
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert "the top level lacks 'predictor'" in refusal(checkpoint)


def test_ones_own_module_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load("fixtures_models:rssm")
    assert model.family == "own" and (model.latent_dim, model.action_dim) == (16, 2) and list(model.heads) == ["reward"]
    assert load("edgewm.models.synthetic:lewm").family == "stable_worldmodel.lewm"
    assert "no module named no_such" in refusal("no_such:model")
    assert "fixtures_models has no 'nothing'" in refusal("fixtures_models:nothing")
    assert "'' is no name of a module" in refusal(":x") and "'a/b' is no name" in refusal("a/b:x")
    assert "'PLANNER' of fixtures_models is no function" in refusal("fixtures_models:PLANNER")
    monkeypatch.setattr(fixtures, "number", lambda: 3, raising=False)
    assert "number returned a int" in refusal("fixtures_models:number")
    monkeypatch.setattr(fixtures, "bare", lambda: torch.nn.Linear(1, 1), raising=False)
    assert "Linear has no 'ports'" in refusal("fixtures_models:bare")
    module = fixtures.rssm()
    module.ports = module.ports[1:]
    monkeypatch.setattr(fixtures, "goalless", lambda: module, raising=False)
    assert "ports are ['goal', 'action']" in refusal("fixtures_models:goalless")


def test_a_module_that_raises_when_imported_is_told_in_three_lines(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for name, code, message in (
        ("raises9", "1 / 0", "raises9 cannot be imported: ZeroDivisionError: division by zero"),
        ("attribute9", "import json; json.nothing", "attribute9 cannot be imported: AttributeError"),
        ("leaves9", "raise SystemExit(3)", "leaves9 cannot be imported: SystemExit: 3"),
        ("wrong9", "def (:", "wrong9 cannot be imported: SyntaxError"),
        ("lacks9", "import no_such_thing9", "no module named no_such_thing9"),
    ):
        (tmp_path / f"{name}.py").write_text(code)
        told = refusal(f"{name}:model")
        assert message in told and len(told.splitlines()) == 3

"""The judge: good compressions pass, planted faults fail, too little evidence decides nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgewm import format as ewm_format
from edgewm import validate as verb
from edgewm.errors import EdgewmError
from edgewm.judge import closed_loop, gates, horizon, plan, sides, sources
from edgewm.manifest import Manifest
from edgewm.program import Planner, Port

LATENT, ACTION, WINDOW = 12, 4, 2
PLANNER = Planner(
    samples=48, iterations=4, elites=6, horizon=4, action_block=2, commit_steps=2, low=-1.0, high=1.0,
    first_candidate_is_mean=False,
)  # fmt: skip
PORTS = (
    Port("pixels", "observation", (1, 4, 4, 3), "u8"), Port("goal", "goal", (1, 4, 4, 3), "u8"),
    Port("action", "action", (2,), low=-1.0, high=1.0),
)  # fmt: skip


def quiet(stage: str, done: float) -> None:
    assert 0 <= done <= 1


class Toy:
    """A little world model in numpy: pixels -> latent, two weight matrices, squared distance to the goal."""

    def __init__(self, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.look = rng.normal(0, 0.3, (48, LATENT))
        self.move = rng.normal(0, 0.5, (ACTION, LATENT))
        self.turn = np.eye(LATENT) + rng.normal(0, 0.15, (LATENT, LATENT))

    def rounded(self, bits: int) -> Toy:
        """Weights on a grid, as a quantizer leaves them."""
        new = Toy()
        for name in ("look", "move", "turn"):
            w = getattr(self, name)
            step = np.abs(w).max() / 2 ** (bits - 1)
            setattr(new, name, np.round(w / step) * step)
        return new

    def encode(self, pixels):
        return np.tanh((pixels.reshape(-1) / 127.5 - 1) @ self.look)

    def predict(self, z, actions):
        return np.tanh(z[:, -1] @ self.turn + actions[:, -1] @ self.move + 0.1 * z[:, 0])

    def score(self, z, goal, candidates):
        latents = np.repeat(z[None, None], len(candidates), 0)
        for t in range(candidates.shape[1]):
            seen = slice(max(0, t + 1 - WINDOW), t + 1)
            latents = np.concatenate([latents, self.predict(latents[:, seen], candidates[:, seen])[:, None]], 1)
        return np.square(latents[:, -1] - goal).mean(1)


def side(toy: Toy, **replaced) -> sides.Side:
    def run(observation, goal, noise):
        z, target = toy.encode(observation["pixels"]), toy.encode(goal["pixels"])
        score = replaced.get("score", toy.score)
        return sides.search(lambda c: score(z, target, c), PLANNER, noise).mean

    made = sides.Side(lambda o: toy.encode(o["pixels"]), toy.predict, toy.score, run, WINDOW)
    return dataclasses.replace(made, **replaced)


def contexts(n: int, seed: int = 0):
    rng = np.random.default_rng([9, seed])
    for _ in range(n):
        yield tuple({"pixels": rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)} for _ in range(2))


def judged(compressed: sides.Side, n: int = gates.CONTEXTS) -> dict[str, dict]:
    _, rows = plan.run(side(Toy()), compressed, PLANNER, ACTION, contexts(n), n, 0, quiet)
    return {r["name"]: r for r in rows}


def of_predict(toy: Toy, predict) -> sides.Side:
    """A side whose every answer goes through this step of the dynamics."""
    broken = Toy()
    broken.__dict__.update(toy.__dict__)
    broken.predict = predict
    return side(broken)


# ------------------------------------------------------------------------------------------------------ suite plan


def test_the_full_model_passes_against_itself():
    rows = judged(side(Toy()))
    assert gates.verdict(rows.values()) is True
    assert rows["spearman_min"]["value"] == 1.0 and rows["regret"]["value"] == 0.0 and rows["drift"]["value"] == 0.0


def test_a_fine_quantization_passes():
    rows = judged(side(Toy().rounded(10)))
    assert gates.verdict(rows.values()) is True, {k: (r["value"], r["passed"]) for k, r in rows.items()}
    assert 0 < rows["drift"]["value"] < rows["drift"]["limit"]


def test_a_coarse_quantization_fails():
    assert gates.verdict(judged(side(Toy().rounded(3))).values()) is False


def faults():
    toy = Toy()
    doubled, transposed, dropped = Toy(), Toy(), Toy()
    doubled.move = 2 * toy.move
    transposed.turn = toy.turn.T
    dropped.look = toy.look * (np.arange(LATENT) != 3)
    stale = np.random.default_rng(1).standard_normal((4, 48, 4, ACTION), np.float32)
    return {
        "one weight's scale off by two": (side(doubled), {"spearman_min", "drift", "regret"}),
        "costs off by two": (side(toy, score=lambda z, g, c: 2 * toy.score(z, g, c)), {"cost_error"}),
        "actions shuffled": (side(toy, score=lambda z, g, c: toy.score(z, g, c[:, ::-1])), {"spearman_min", "regret"}),
        "candidates in another order": (side(toy, score=lambda z, g, c: toy.score(z, g, c)[::-1]), {"elite_overlap"}),
        "noise reused": (side(toy, plan=lambda o, g, n: side(toy).plan(o, g, stale)), {"first_action_ratio"}),
        "latents clipped": (
            of_predict(toy, lambda z, a: np.clip(toy.predict(z, a), -0.3, 0.3)), {"drift", "cost_error"},
        ),
        "weights transposed": (side(transposed), {"spearman_min", "drift"}),
        "a latent lost": (side(dropped), {"cost_error"}),
        "goal and observation swapped": (side(toy, score=lambda z, g, c: toy.score(g, z, c)), {"spearman_min"}),
        "history forgotten": (of_predict(toy, lambda z, a: toy.predict(z[:, -1:] * 0, a)), {"drift", "spearman_min"}),
        "a cost that is not a number": (
            side(toy, score=lambda z, g, c: np.where(np.arange(len(c)) == 5, np.nan, toy.score(z, g, c))),
            {"spearman_min"},
        ),
        "a constant cost": (side(toy, score=lambda z, g, c: np.ones(len(c))), {"spearman_min", "regret"}),
    }  # fmt: skip


@pytest.mark.parametrize("name", faults())
def test_a_planted_fault_fails(name):
    compressed, caught_by = faults()[name]
    rows = judged(compressed)
    assert gates.verdict(rows.values()) is False
    assert caught_by <= {k for k, r in rows.items() if r["passed"] is False}


def test_every_gate_of_the_suite_is_failed_by_some_fault():
    assert {r for _, caught in faults().values() for r in caught} == set(judged(side(Toy()), 1))


def test_too_few_contexts_decide_nothing():
    rows = judged(side(Toy()), 10)
    assert {r["passed"] for r in rows.values()} == {None}
    assert "10 independent samples, 50 needed" in rows["regret"]["note"]
    assert gates.verdict(judged(side(Toy()), 0).values()) is None


def test_a_mean_whose_bound_crosses_the_limit_decides_nothing():
    row = gates.judged("regret", 0.008, 60, (0.004, 0.012))
    assert row["passed"] is None and "0.012" in row["note"]
    assert gates.judged("regret", 0.011, 60, (0.004, 0.012))["passed"] is False
    assert gates.judged("regret", 0.008, 60, (0.004, 0.009))["passed"] is True
    assert gates.judged("elite_overlap", 0.96, 60, (0.94, 0.97))["passed"] is None


def test_verdict_of_gates():
    def rows(*states):
        return [{"passed": s} for s in states]

    assert gates.verdict(rows(True, True)) is True
    assert gates.verdict(rows(True, None)) is None
    assert gates.verdict(rows(None, False, True)) is False
    assert gates.verdict([]) is None


# --------------------------------------------------------------------------------------------------- the planner


def test_search_is_upstreams_planner_on_the_same_noise():
    torch = pytest.importorskip("torch")
    planning = pytest.importorskip("torch_world.planning")
    toy = Toy()

    class Upstream(torch.nn.Module):
        def rollout(self, z, actions):
            return actions

        def cost(self, latents, goal):
            return torch.from_numpy(toy.score(z, target, latents.numpy()))

    z, target = (toy.encode(next(contexts(1))[i]["pixels"]) for i in range(2))
    shape = (1, PLANNER.samples, PLANNER.horizon, ACTION)
    generator = torch.Generator().manual_seed(3)
    noise = torch.cat([torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(PLANNER.iterations)])
    cem = planning.CEM(PLANNER.horizon, ACTION, PLANNER.samples, PLANNER.elites, PLANNER.iterations, bounds=(-1.0, 1.0))
    generator.manual_seed(3)
    theirs = cem(Upstream(), torch.zeros(1, 1, 3, dtype=torch.float64), torch.zeros(1, 3), generator=generator)
    ours = sides.search(lambda c: toy.score(z, target, c), PLANNER, noise.numpy())
    assert np.abs(ours.mean - theirs[0].numpy()).max() < 1e-12


def test_elites_break_ties_by_index_and_shun_what_is_not_a_number():
    assert list(sides.elites_of(np.array([2.0, 1, 1, np.nan, 0]), 3)) == [1, 2, 4]
    assert list(sides.elites_of(np.array([np.nan, 5.0, np.nan]), 2)) == [0, 1]


def test_first_candidate_is_the_mean_where_the_planner_says_so():
    planner = dataclasses.replace(PLANNER, first_candidate_is_mean=True)
    noise = np.ones((4, 48, 4, ACTION), np.float32)
    found = sides.search(lambda c: np.square(c).sum((1, 2)), planner, noise)
    assert not found.candidates[0, 0].any() and found.candidates[0, 1].all()


# -------------------------------------------------------------------------------------------------- the adapters


class FakeRuntime:
    """Answers as a bundle does: fixed batches, exact dtypes, `(1, D)` latents."""

    def __init__(self, toy: Toy):
        self.toy, self.calls = toy, []

    def run_entry(self, name, **given):
        self.calls.append(name)
        toy, s, h = self.toy, PLANNER.samples, PLANNER.horizon
        if name == "encode":
            assert given["pixels"].dtype == np.uint8 and given["pixels"].shape == (1, 4, 4, 3)
            return {"z": toy.encode(given["pixels"]).astype(np.float32)[None]}
        assert all(v.dtype in (np.float32, np.uint8) for v in given.values())
        if name.startswith("predict"):
            length = WINDOW if name == "predict" else int(name[8:])
            assert given["z"].shape == (s, length, LATENT) and given["actions"].shape == (s, length, ACTION)
            return {"z_next": toy.predict(given["z"], given["actions"]).astype(np.float32)}
        if name == "score":
            assert given["candidates"].shape == (s, h, ACTION) and given["goal"].shape == (1, LATENT)
            return {"cost": toy.score(given["z"][0], given["goal"][0], given["candidates"]).astype(np.float32)}
        assert name == "plan_with_noise" and not given["warm_mean"].any()
        pair = {"pixels": given["pixels"]}, {"pixels": given["goal"]}
        return {"actions": side(toy).plan(*pair, given["noise"]).astype(np.float32)}


def model():
    return SimpleNamespace(
        ports=PORTS,
        window=WINDOW,
        action_dim=ACTION,
        files={},
        ports_of=lambda kind: tuple(p for p in PORTS if p.kind == kind),
    )


def test_a_bundle_is_asked_in_its_own_batches_and_answers_like_the_model():
    toy, runtime = Toy(), FakeRuntime(Toy())
    bundle = sides.compiled(runtime, model(), PLANNER)
    observation, goal = next(contexts(1))
    z, target = toy.encode(observation["pixels"]), toy.encode(goal["pixels"])
    rng = np.random.default_rng(0)
    odd = rng.normal(size=(PLANNER.samples + 5, PLANNER.horizon, ACTION))
    tight = {"atol": 64 * np.finfo(np.float32).eps}  # values of order 1, through fewer than 64 float32 steps
    assert np.allclose(bundle.encode(observation), z, **tight)
    assert np.allclose(bundle.score(z, target, odd), toy.score(z, target, odd), **tight)
    assert np.allclose(sides.rollout(bundle, z, odd), sides.rollout(side(toy), z, odd), **tight)
    noise = rng.standard_normal((4, 48, 4, ACTION), np.float32)
    assert np.allclose(bundle.plan(observation, goal, noise), side(toy).plan(observation, goal, noise), **tight)
    assert {"predict_1", "predict", "score", "plan_with_noise", "encode"} == set(runtime.calls)


# ---------------------------------------------------------------------------------------------- suite horizon


def trajectories(toy: Toy, n: int, blocks: int = PLANNER.horizon):
    """The toy is its own world: what it imagines comes true, up to a little noise in the picture."""
    rng = np.random.default_rng(5)
    for _ in range(n):
        actions = rng.uniform(-1, 1, (blocks * 2, 2))
        yield rng.integers(0, 256, (blocks * 2 + 1, 4, 4, 3), dtype=np.uint8), actions, None


def followed(compressed: sides.Side, n: int = gates.CONTEXTS):
    return horizon.run(side(Toy()), compressed, PLANNER, "pixels", PORTS[2], trajectories(Toy(), n), n, quiet)


def test_horizon_of_the_full_model_itself_and_of_a_quantized_one():
    figures, rows = followed(side(Toy()))
    assert gates.verdict(rows) is True and figures["full_error_by_step"] == figures["compressed_error_by_step"]
    assert len(figures["full_error_by_step"]) == PLANNER.horizon + 1 and figures["full_error_by_step"][0] == 0
    assert gates.verdict(followed(side(Toy().rounded(10)))[1]) is True


def test_horizon_catches_runaway_latents_and_two_ways_that_disagree():
    toy = Toy()
    _, rows = followed(of_predict(toy, lambda z, a: 3 * toy.predict(z, a)))
    assert {r["name"]: r["passed"] for r in rows}["future_error_added"] is False
    _, rows = followed(side(toy, predict=lambda z, a: toy.predict(z, -a)))
    assert {r["name"]: r["passed"] for r in rows}["self_consistency"] is False
    assert gates.verdict(followed(side(toy), 5)[1]) is None


def test_model_actions_undo_the_ports_scale():
    port = Port("action", "action", (2,), scale=(2.0, 4.0), offset=(1.0, 0.0))
    actions = np.array([[3.0, 4.0], [1.0, -4.0]])
    assert horizon.model_actions(actions, port, PLANNER).tolist() == [[1.0, 1.0, 0.0, -1.0]]


# ------------------------------------------------------------------------------------------- suite closed-loop


def test_closed_loop_of_equals_stops_early_and_passes():
    seen = []

    def episode(seed: int) -> bool:
        seen.append(seed)
        return np.random.default_rng(seed).random() < 0.8

    figures, rows = closed_loop.run(episode, episode, 200, 0, quiet)
    assert rows[0]["passed"] is True and figures["full"]["episodes"] < 60
    assert seen[0::2] == seen[1::2]  # pairs share their starts
    low, high = figures["full"]["wilson_95"]
    assert low < figures["full"]["successes"] / figures["full"]["episodes"] < high


def test_closed_loop_of_a_broken_model_fails_and_of_two_episodes_is_undecided():
    def good(seed: int) -> bool:
        return np.random.default_rng(seed).random() < 0.9

    figures, rows = closed_loop.run(good, lambda seed: seed % 3 == 0, 200, 0, quiet)
    assert rows[0]["passed"] is False and figures["mcnemar_p"] < 0.05
    _, rows = closed_loop.run(good, good, 2, 0, quiet)
    assert rows[0]["passed"] is None and "2 episodes" in rows[0]["note"]


# ---------------------------------------------------------------------------------------------- verdict, refusals


@pytest.fixture
def bundle(tmp_path):
    manifest = {
        "target": "host", "mode": "AS_IS", "precision": "w8a8", "rate_hz": 20.0, "threads": 1,
        "planner": dataclasses.asdict(PLANNER), "ports": [dataclasses.asdict(p) for p in PORTS],
    }  # fmt: skip
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "model.ewm").write_bytes(ewm_format.pack({"manifest": json.dumps(manifest).encode()}, "t", bytes(32)))
    return folder


def manifest_of(folder) -> Manifest:
    from edgewm.manifest import read_manifest

    return read_manifest(folder)


def test_the_manifest_comes_back_as_values(bundle):
    found = manifest_of(bundle)
    assert found.planner == PLANNER and found.ports == PORTS and found.rate_hz == 20.0
    assert found.sha256 == hashlib.sha256((bundle / "model.ewm").read_bytes()).hexdigest()


def test_the_verdict_is_bound_to_the_bytes_it_judged(bundle):
    result = {"bundle_sha256": manifest_of(bundle).sha256, "passed": True}
    verb.write_verdict(bundle, result)
    assert verb.read_verdict(bundle) == result
    assert sorted(p.name for p in bundle.iterdir()) == ["model.ewm", "verdict.json"]
    data = ewm_format.unpack((bundle / "model.ewm").read_bytes())
    changed = json.loads(data["manifest"]) | {"precision": "fp32"}
    (bundle / "model.ewm").write_bytes(ewm_format.pack({"manifest": json.dumps(changed).encode()}, "t", bytes(32)))
    assert verb.read_verdict(bundle) is None


def test_a_verdict_that_cannot_be_written_is_refused(bundle, tmp_path):
    with pytest.raises(EdgewmError, match="the verdict cannot be written"):
        verb.write_verdict(tmp_path / "nowhere", {})


def test_all_suites_on_a_whole_bundle(bundle, monkeypatch):
    full = side(Toy())
    monkeypatch.setattr(verb, "upstream", lambda model, planner: full)
    found = sources.Source(contexts, lambda n, steps, seed: trajectories(Toy(), n), None)
    asked = {"suite": ["plan", "horizon"], "episodes": 5, "contexts": 50, "seed": 0, "progress": quiet}
    result = verb.judge(manifest_of(bundle), model(), FakeRuntime(Toy()), [0], found, **asked)
    assert result["passed"] is True and result["closed_loop"] is None
    assert {"spearman_min", "elite_overlap", "regret", "first_action_error"} <= result["plan"].keys()
    json.dumps(result, allow_nan=False)
    with pytest.raises(EdgewmError, match="nothing like a simulator for this model"):
        verb.judge(manifest_of(bundle), model(), FakeRuntime(Toy()), [0], found, **(asked | {"suite": ["closed-loop"]}))


def test_another_models_bundle_is_refused(bundle):
    other = SimpleNamespace(ports=(dataclasses.replace(PORTS[0], shape=(1, 8, 8, 3)), *PORTS[1:]))
    with pytest.raises(EdgewmError, match="port 'pixels' is") as fault:
        verb._same_model(manifest_of(bundle), other, "mine")
    assert "the model it was built from" in fault.value.fix


def test_recorded_trajectories_serve_the_horizon_suite_and_are_checked(tmp_path):
    file, rng = tmp_path / "recorded.safetensors", np.random.default_rng(0)
    frames = rng.integers(0, 256, (5, 13, 4, 4, 3), dtype=np.uint8)
    actions = rng.uniform(-1, 1, (5, 12, 2)).astype(np.float32)
    save_file({"rollout_pixels": frames, "rollout_action": actions}, file)
    found = sources.source_of("some/checkpoint", model(), file)
    assert found.contexts is None
    for seen, played, _ in found.rollouts(3, 8, 0):
        (which,) = {i for i in range(5) for t in range(5) if np.array_equal(frames[i, t : t + 9], seen)}
        assert any(np.array_equal(actions[which, t : t + 8], played) for t in range(5))
    with pytest.raises(EdgewmError, match="trajectories of 12 periods"):
        next(found.rollouts(3, 13, 0))
    save_file({"rollout_pixels": frames, "rollout_action": actions[:, :9].copy()}, file)
    with pytest.raises(EdgewmError, match="5 trajectories of 13 frames and 5 of 9 actions") as fault:
        sources.recorded(file, model())
    assert fault.value.fix == "record T + 1 frames for T actions of each trajectory"
    save_file({"rollout_pixels": frames}, file)
    with pytest.raises(EdgewmError, match="no array 'rollout_action'"):
        sources.recorded(file, model())
    save_file({"rollout_pixels": frames, "rollout_action": np.zeros((5, 12, 3), np.float32)}, file)
    with pytest.raises(EdgewmError, match="rows of 'rollout_action' have shape"):
        sources.recorded(file, model())


def test_recorded_data_serve_as_contexts_and_are_checked(tmp_path):
    file = tmp_path / "recorded.safetensors"
    frames = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), dtype=np.uint8)
    save_file({"pixels": frames, "goal": frames[::-1].copy()}, file)
    found = list(sources.source_of("some/checkpoint", model(), file).contexts(5, 0))
    assert len(found) == 5 and found[0][0]["pixels"].shape == (4, 4, 3)
    save_file({"pixels": frames}, file)
    with pytest.raises(EdgewmError, match="no array 'goal'"):
        sources.recorded(file, model())
    save_file({"pixels": frames[:, :2].copy(), "goal": frames}, file)
    with pytest.raises(EdgewmError, match="rows of 'pixels' have shape"):
        sources.recorded(file, model())
    file.write_bytes(b"no")
    with pytest.raises(EdgewmError, match="not a safetensors file"):
        sources.recorded(file, model())


def test_an_unknown_suite_is_refused(bundle):
    pytest.importorskip("edgewm.binding")
    with pytest.raises(EdgewmError, match="no suite 'speed'"):
        verb.validate(bundle, against="reference", suite=("speed",))


def test_the_reference_brings_contexts_futures_a_world_and_a_gallery():
    found = sources.source_of("reference", model())
    observation, goal = next(iter(found.contexts(1, 0)))
    assert observation["pixels"].shape == goal["pixels"].shape == (64, 64, 3)
    frames, actions, gallery = found.gallery(20, 0)
    assert frames.shape == (21, 64, 64, 3) and actions.shape == (20, 2) and len(gallery) > 500

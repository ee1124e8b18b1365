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
from edgewm.judge import budget, gates, plan, sides, sources
from edgewm.judge.imagine import Subjects
from edgewm.judge.noise import philox
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


CONTEXTS = gates.DEFAULT.contexts


def judged(compressed: sides.Side, n: int = CONTEXTS) -> dict[str, dict]:
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
    assert "10 independent samples, 59 needed" in rows["regret"]["note"]
    assert gates.verdict(judged(side(Toy()), 0).values()) is None


def test_a_mean_whose_bound_crosses_the_limit_decides_nothing():
    row = gates.judged("regret", 0.008, 60, (0.004, 0.012))
    assert row["passed"] is None and "0.012" in row["note"]
    assert gates.judged("regret", 0.011, 60, (0.004, 0.012))["passed"] is False
    assert gates.judged("regret", 0.008, 60, (0.004, 0.009))["passed"] is True
    assert gates.judged("elite_overlap", 0.96, 60, (0.94, 0.97))["passed"] is None


def test_what_a_smaller_search_costs_is_told():
    whole = dataclasses.replace(PLANNER, samples=4 * PLANNER.samples, elites=2 * PLANNER.elites)
    full = side(Toy())

    def regret(compressed: sides.Side, planner: Planner) -> float:
        subjects = Subjects(full, compressed, planner, "pixels", PORTS[2], whole)
        found, (row,) = budget.run(subjects, ACTION, contexts(24), 0)
        assert row["name"] == "search_regret" and row["value"] == found["search_regret"] and row["samples"] == 24
        assert found["search_regret_95"][0] <= found["search_regret"] <= found["search_regret_95"][1]
        assert found["full_search"] == {"samples": 192, "iterations": 4, "elites": 12}
        return found["search_regret"]

    blind = side(Toy(), plan=lambda observation, goal, noise: noise[0, 0])
    few = dataclasses.replace(PLANNER, samples=8, elites=2)
    assert abs(regret(side(Toy()), PLANNER)) < 0.1 < regret(blind, few)


def test_verdict_of_gates():
    def rows(*states):
        return [{"passed": s} for s in states]

    assert gates.verdict(rows(True, True)) is True
    assert gates.verdict(rows(True, None)) is None
    assert gates.verdict(rows(None, False, True)) is False
    assert gates.verdict([]) is None


def figures_of(compressed: sides.Side, n: int = 8) -> dict:
    return plan.run(side(Toy()), compressed, PLANNER, ACTION, contexts(n), n, 0, quiet)[0]


def test_kendall_and_where_elites_part():
    same, other = figures_of(side(Toy())), figures_of(side(Toy().rounded(6)))
    assert same["kendall_min"] == same["kendall_median"] == 1.0
    assert same["elites_part_at"] == [0] * PLANNER.iterations and same["elites_never_part"] == 8
    assert other["kendall_min"] < other["kendall_median"] < 1.0
    assert sum(other["elites_part_at"]) + other["elites_never_part"] == 8 and other["elites_part_at"][0] > 0
    late = figures_of(side(Toy(), score=only_the_close_ones_wrong))
    assert late["elites_part_at"][0] == 0 < sum(late["elites_part_at"])
    assert plan.first_below(np.array([1.0, 1.0, 0.5]), 1.0) == 2 and plan.first_below(np.ones(3), 1.0) is None


def only_the_close_ones_wrong(z, goal, candidates):
    """Right while candidates are far apart, reversed once they are drawn close together."""
    cost = Toy().score(z, goal, candidates)
    return cost if candidates.std(0).mean() > 0.5 else -cost


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

    def __init__(self, toy: Toy, stuck: bool = False):
        self.toy, self.calls, self.stuck = toy, [], stuck

    def ports(self, entry: str):
        assert entry == "plan"
        kinds = {"pixels": (1, 4, 4, 3), "goal": (1, 4, 4, 3), "warm_mean": (PLANNER.horizon, ACTION), "seed": (2,)}
        return [SimpleNamespace(name=n, shape=s, dtype=np.float32, is_input=True) for n, s in kinds.items()]

    def run_entry(self, name, **given):
        self.calls.append(name)
        toy, s, h = self.toy, PLANNER.samples, PLANNER.horizon
        if name == "encode":
            assert given["pixels"].dtype == np.uint8 and given["pixels"].shape == (1, 4, 4, 3)
            return {"z": toy.encode(given["pixels"]).astype(np.float32)[None]}
        assert all(v.dtype in (np.float32, np.uint8, np.uint32) for v in given.values())
        if name.startswith("predict"):
            length = WINDOW if name == "predict" else int(name[8:])
            assert given["z"].shape == (s, length, LATENT) and given["actions"].shape == (s, length, ACTION)
            return {"z_next": toy.predict(given["z"], given["actions"]).astype(np.float32)}
        if name == "score":
            assert given["candidates"].shape == (s, h, ACTION) and given["goal"].shape == (1, LATENT)
            return {"cost": toy.score(given["z"][0], given["goal"][0], given["candidates"]).astype(np.float32)}
        assert name in ("plan", "plan_with_noise") and not given["warm_mean"].any()
        pair = {"pixels": given["pixels"]}, {"pixels": given["goal"]}
        if name == "plan":  # draws its own; a stuck one the same for every plan
            count, seed = int(given["plan_counter"][0]), int(given["seed"][0]) + (int(given["seed"][1]) << 32)
            given["noise"] = philox(PLANNER, ACTION, seed, 0 if self.stuck else count)
        found = {"actions": side(toy).plan(*pair, given["noise"]).astype(np.float32)}
        return found | ({"plan_counter": given["plan_counter"] + 1} if name == "plan" else {})


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
    for early in (verb.check_place, lambda place: verb.write_verdict(place, {})):
        with pytest.raises(EdgewmError, match="the verdict cannot be written"):
            early(tmp_path / "nowhere")


def test_a_verdict_that_is_not_whole_is_none(bundle):
    for text in ('{"bundle_sha256": "ab', "[]"):
        (bundle / "verdict.json").write_text(text)
        assert verb.read_verdict(bundle) is None and not verb.is_validated(bundle)


def trajectories(n: int, steps: int, seed: int = 0):
    """Random pictures and actions, a picture a period; what they show beside them."""
    rng = np.random.default_rng([5, seed])
    for _ in range(n):
        frames = rng.integers(0, 256, (steps + 1, 4, 4, 3), dtype=np.uint8)
        yield frames, rng.uniform(-1, 1, (steps, 2)), frames.reshape(steps + 1, -1)[:, :2].astype(float)


def judge_whole(bundle, runtime=None, full=None, whole=None, **asked):
    runtime = runtime or FakeRuntime(Toy())
    subjects = Subjects(
        full or side(Toy()), sides.compiled(runtime, model(), PLANNER), PLANNER, "pixels", PORTS[2],
        whole,
    )  # fmt: skip
    found = sources.Source(contexts=contexts, rollouts=trajectories)
    usual = {
        "suite": ["plan", "horizon"], "preset": gates.DEFAULT, "episodes": 5, "contexts": CONTEXTS, "latency": (),
        "seed": 0, "progress": quiet, "notice": str,
    }  # fmt: skip
    asked.setdefault("source", found)
    return verb.judge(
        subjects, manifest_of(bundle), model(), runtime, [0], asked.pop("source"), **(usual | asked)
    )  # fmt: skip


def test_suites_on_a_whole_bundle(bundle):
    result = judge_whole(bundle)
    assert result["passed"] is True and result["closed_loop"] is None and result["suites"] == ["plan", "horizon"]
    assert {"spearman_min", "elite_overlap", "regret", "first_action_error", "own_plans"} <= result["plan"].keys()
    assert {g["suite"] for g in result["gates"]} == result["seconds"].keys() == {"plan", "horizon"}
    assert "search_regret" not in result["plan"]
    larger = judge_whole(bundle, whole=dataclasses.replace(PLANNER, samples=96), suite=["plan"])
    assert larger["plan"]["search_regret"] is not None
    json.dumps(result, allow_nan=False)


def test_layers_are_told_where_the_bundle_names_a_recipe(bundle):
    for precision, left_out in (("fp32", {}), ("recipe", {"plan": ["which layer costs what: the bundle does not name "
                                                                   "its recipe"]})):  # fmt: skip
        result = {"plan": {}, "left_out": {}}
        manifest = dataclasses.replace(manifest_of(bundle), precision=precision)
        verb.add_layers(result, manifest, model(), sources.Source(contexts=contexts), 0, quiet)
        assert result == {"plan": {}, "left_out": left_out}
    result, other = {"plan": {}, "left_out": {}}, model()
    other.files = {"weights": "of another"}
    verb.add_layers(result, manifest_of(bundle), other, sources.Source(contexts=contexts), 0, quiet)
    assert result["left_out"] == {"plan": ["which layer costs what: the bundle is of another model"]}


def test_the_usual_suites_are_those_there_is_evidence_for(bundle):
    found = sources.Source(contexts=contexts)
    result = judge_whole(bundle, suite=None, source=found)
    assert result["suites"] == ["plan"] and result["passed"] is True
    assert result["skipped"].keys() == {"physics", "causality", "horizon", "general"}
    assert "no recorded futures" in result["skipped"]["horizon"]


@pytest.mark.parametrize(
    ("suite", "message"),
    [("closed-loop", "no simulator"), ("horizon", "no recorded futures"), ("general", "no shifted scenes"),
     ("plan", "no recorded observations and goals to plan from")],
)  # fmt: skip
def test_a_suite_asked_for_without_evidence_is_refused(bundle, suite, message):
    with pytest.raises(EdgewmError, match=f"{message}.* for this model"):
        judge_whole(bundle, suite=[suite], source=sources.Source())


def test_what_cannot_run_is_refused_before_anything_runs(bundle):
    def never(n: int, seed: int):
        raise AssertionError("planned before the refusal")

    with pytest.raises(EdgewmError, match="no simulator for this model"):
        judge_whole(bundle, suite=["plan", "closed-loop"], source=sources.Source(contexts=never))


def too_short(n: int, steps: int, seed: int):
    raise EdgewmError(f"trajectories of {steps - 1} periods", "a file", "record more")


def test_futures_shorter_than_a_plan_are_refused_or_left_out(bundle):
    shift = sources.Shift(contexts, too_short)
    short = sources.Source(contexts=contexts, rollouts=too_short, shifts=lambda: {"dark": shift})
    result = judge_whole(bundle, suite=None, source=short, contexts=4)
    assert result["skipped"] == dict.fromkeys(("physics", "causality", "horizon"), "trajectories of 7 periods")
    assert result["suites"] == ["plan", "general"]
    assert result["left_out"]["general"] == ["no recorded futures of shifted scenes"]
    with pytest.raises(EdgewmError, match="trajectories of 7 periods"):
        judge_whole(bundle, suite=["plan", "horizon"], source=short)


def test_ones_own_limits_reach_every_gate(bundle):
    lenient = dataclasses.replace(gates.DEFAULT, limits={**gates.DEFAULT.limits, "own_plans": 1.0})
    result = judge_whole(bundle, FakeRuntime(Toy(), stuck=True), suite=["plan"], preset=lenient)
    (row,) = (g for g in result["gates"] if g["name"] == "own_plans")
    assert (row["limit"], row["passed"]) == (1.0, True) and result["limits"]["own_plans"] == 1.0


def test_plans_that_the_robot_would_make_otherwise_are_refused(bundle):
    result = judge_whole(bundle, FakeRuntime(Toy(), stuck=True), suite=["plan"])
    assert {g["name"]: g["passed"] for g in result["gates"]}["own_plans"] is False


def test_a_preset_decides_and_is_named(bundle):
    strict = judge_whole(bundle, suite=["plan"], preset=gates.NAMED["strict"])
    assert strict["passed"] is None and strict["preset"] == "strict"
    assert "59 independent samples, 149 needed" in strict["gates"][0]["note"]


def test_suites_run_one_after_another_come_together(bundle):
    first, second = judge_whole(bundle, suite=["plan"]), judge_whole(bundle, suite=["horizon"])
    head = {
        "schema_version": 1, "bundle_sha256": manifest_of(bundle).sha256, "against": "toy", "same_weights": True,
        "model_sha256": {"weights": "ab"}, "data": "a", "data_sha256": "12", "held_out": False,
    }  # fmt: skip
    whole = verb.merged(head | second, head | first)
    assert whole["suites"] == ["plan", "horizon"] and whole["passed"] is True
    assert whole["plan"] == first["plan"] and whole["horizon"] == second["horizon"]
    assert whole["gates"] == first["gates"] + second["gates"] and whole["seconds"].keys() == {"plan", "horizon"}
    worse = head | second | {"gates": [row | {"passed": False} for row in second["gates"]], "passed": False}
    assert verb.merged(worse, head | first)["passed"] is False
    assert verb.merged(worse, head | second) == head | second  # the newer of the same suite
    for other in ({"preset": "strict"}, {"bundle_sha256": "0"}, {"against": "another"}, {"data_sha256": "34"},
                  {"seed": 1}, {"limits": {}}, {"model_sha256": {}}, {"held_out": True}):  # fmt: skip
        assert verb.merged(head | second | other, head | first) == head | first
    for missing in (*verb.SAME, "data_sha256"):  # of an older edgewm
        older = {key: value for key, value in (head | second).items() if key != missing}
        assert verb.merged(older, head | first) == head | first
    loop = head | first | {"suites": ["closed-loop"], "gates": [], "seconds": {}, "data": None, "data_sha256": None}
    for whole_loop in (verb.merged(loop, head | first), verb.merged(head | first, loop)):  # which takes no data
        assert whole_loop["suites"] == ["plan", "closed-loop"] and whole_loop["data"] == "a"
    assert verb.merged(None, head | first) == head | first
    usual = head | judge_whole(bundle, suite=None, source=sources.Source(contexts=contexts))
    assert "horizon" in usual["skipped"] and "horizon" not in verb.merged(head | second, usual)["skipped"]
    verb.write_verdict(bundle, head | second)
    assert not verb.is_validated(bundle)  # nothing said of its plans
    verb.write_verdict(bundle, whole)
    assert verb.is_validated(bundle)


@pytest.mark.parametrize("asked", [{"latency": ("100",)}, {"episodes": 3}, {"env": "reference"}])
def test_what_belongs_to_a_loop_is_refused_without_one(asked):
    for suite in (("plan",), None):
        with pytest.raises(EdgewmError, match="without a loop") as fault:
            verb.check_suites(suite, **asked)
        assert fault.value.where == f"--{next(iter(asked))}" and fault.value.fix == "add --suite closed-loop"
    assert verb.check_suites(("closed-loop",), **asked)


def test_weights_of_a_model_without_files_are_nobodys(bundle):
    built = dataclasses.replace(manifest_of(bundle), raw={"model_sha256": {"a": "1"}})
    for files, same in (({}, None), ({"a": "1"}, True), ({"a": "2"}, False)):
        assert verb.has_weights_of(built, SimpleNamespace(files=files)) is same


def test_another_models_bundle_is_refused(bundle):
    other = SimpleNamespace(ports=(dataclasses.replace(PORTS[0], shape=(1, 8, 8, 3)), *PORTS[1:]))
    with pytest.raises(EdgewmError, match="port 'pixels' is") as fault:
        verb._same_model(manifest_of(bundle), other, "mine")
    assert "the model it was built from" in fault.value.fix


def test_a_simulator_that_does_not_fit_is_refused_and_known_data_are_told(bundle, tmp_path, monkeypatch):
    """Before the bundle is opened, which holds nothing that could be run."""
    frames, data, told = np.zeros((3, 4, 4, 3), np.uint8), tmp_path / "rec.safetensors", []
    save_file({"pixels": frames, "goal": frames}, data)
    known = json.loads(ewm_format.unpack((bundle / "model.ewm").read_bytes())["manifest"])
    known["calibration_sha256"] = hashlib.sha256(data.read_bytes()).hexdigest()
    (bundle / "model.ewm").write_bytes(ewm_format.pack({"manifest": json.dumps(known).encode()}, "t", bytes(32)))
    monkeypatch.setattr("edgewm.models.load", lambda word: model())
    with pytest.raises(EdgewmError, match=r"the simulator shows shape \(64, 64, 3\) on port 'pixels'"):
        verb.validate(
            bundle, against="mine", suite=("plan", "closed-loop"), env="reference", data=data, notice=told.append
        )
    assert told == [f"{bundle} was calibrated on {data}: judge it on other data, too"]


def test_an_unknown_suite_is_refused(bundle):
    pytest.importorskip("edgewm.binding")
    with pytest.raises(EdgewmError, match="no suite 'speed'"):
        verb.validate(bundle, against="reference", suite=("speed",))

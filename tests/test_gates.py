"""Gates and presets as data; the closed loop's test keeps its error rate however early it stops."""

from __future__ import annotations

import numpy as np
import pytest
from test_validate import quiet

from edgewm import statistics
from edgewm.errors import EdgewmError
from edgewm.judge import closed_loop, gates


def test_presets_are_ordered_and_say_how_many_contexts_they_take():
    strict, default, explore = (gates.NAMED[name] for name in ("strict", "default", "explore"))
    assert (strict.contexts, default.contexts, explore.contexts) == (149, 59, 29)
    assert strict.episodes > default.episodes > explore.episodes
    for gate in gates.GATES.values():
        tight, usual, loose = gate.limits
        assert (tight >= usual >= loose) if gate.direction == "at_least" else (tight <= usual <= loose), gate.name


def test_the_worst_of_that_many_contexts_is_worse_than_all_but_the_share_it_claims():
    rng = np.random.default_rng(0)
    for preset in gates.NAMED.values():
        worst = rng.random((4000, preset.contexts)).min(1)  # of values whose share below x is x
        assert np.mean(worst <= preset.unseen) >= 0.94


def test_a_row_is_decided_again_under_another_preset():
    row = gates.judged("regret", 0.02, 60, (0.015, 0.025))
    assert row["passed"] is False and gates.under(gates.NAMED["explore"], row)["passed"] is True
    assert gates.under(gates.NAMED["strict"], row)["note"] == "60 independent samples, 149 needed"
    own = gates.decided("own_plans", 0.0, True, 8)
    assert gates.under(gates.NAMED["strict"], own) == own


def test_an_undecided_row_says_how_many_samples_could_decide():
    row = gates.judged("regret", 0.008, 60, (0.004, 0.012))
    assert row["passed"] is None and "about 240 samples could decide (there are 60)" in row["note"]
    rng = np.random.default_rng(1)
    samples = rng.normal(0.008, 0.012, 240 * 2)
    assert gates.judged("regret", *_mean(samples))["passed"] is True


def _mean(samples):
    value, *bounds = gates.mean_interval(samples)
    return value, len(samples), bounds


def test_a_preset_of_ones_own(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text('{"base": "explore", "limits": {"regret": 0.2}}')
    mine = gates.preset_of(str(file))
    assert mine.name == "mine" and mine.limits["regret"] == 0.2
    assert mine.limits["drift"] == gates.NAMED["explore"].limits["drift"] and mine.contexts == 29
    for text, message in (
        ('{"base": "lenient"}', "no preset 'lenient' to begin with"), ('{"limits": {"luck": 1}}', "no gate 'luck'"),
        ('{"limits": {"regret": "0.1"}}', "the limit of regret is '0.1'"), ("[1]", "not a preset"),
        ("{", "not a preset"), ('{"base": []}', "no preset \\[\\] to begin with"),
        ('{"limit": {"regret": 0.2}}', "a preset has no 'limit'"), ('{"unseen": 0.5}', "a preset has no 'unseen'"),
        ('{"limits": {"closed_loop_loss": 0}}', "the margin closed_loop_loss is 0"),
        ('{"limits": {"late_loss": 1.0}}', "the margin late_loss is 1.0"),
    ):  # fmt: skip
        file.write_text(text)
        with pytest.raises(EdgewmError, match=message):
            gates.preset_of(str(file))
    with pytest.raises(EdgewmError, match="no preset 'lenient'"):
        gates.preset_of("lenient")
    (tmp_path / "strict.json").write_text('{"base": "explore"}')
    with pytest.raises(EdgewmError, match="would be told as 'strict'"):
        gates.preset_of(str(tmp_path / "strict.json"))


# ------------------------------------------------------------------------------------------- suite closed-loop


def test_closed_loop_of_equals_stops_early_and_passes():
    seen = []

    def pair(seed: int) -> closed_loop.Outcome:
        seen.append(seed)
        outcome = 12 if np.random.default_rng(seed).random() < 0.8 else None
        return outcome, outcome

    figures, rows = closed_loop.run(pair, 200, 0, quiet)
    assert rows[0]["passed"] is True and figures["full"]["episodes"] < 60
    assert len(set(seen)) == len(seen) and figures["full"]["median_periods"] == 12
    low, high = figures["full"]["wilson_95"]
    assert low < figures["full"]["successes"] / figures["full"]["episodes"] < high
    assert figures["difference"] == 0 and figures["difference_95"] == [0.0, 0.0]


def test_closed_loop_of_a_broken_model_fails_and_of_two_episodes_is_undecided():
    def good(seed: int) -> int | None:
        return 5 if np.random.default_rng(seed).random() < 0.9 else None

    figures, rows = closed_loop.run(lambda s: (good(s), 5 if s % 3 == 0 else None), 200, 0, quiet)
    assert rows[0]["passed"] is False and figures["mcnemar_p"] < 0.05
    assert figures["difference_95"][1] < 0 < rows[0]["value"]
    _, rows = closed_loop.run(lambda s: (good(s), good(s)), 2, 0, quiet)
    assert rows[0]["passed"] is None and "2 episodes" in rows[0]["note"]


def test_the_margin_is_the_presets_and_a_smaller_one_takes_more_episodes():
    played = {}
    for name in ("strict", "default", "explore"):
        preset = gates.NAMED[name]
        figures, rows = closed_loop.run(lambda s: (9, 9), preset.episodes, 0, quiet, preset)
        assert rows[0]["passed"] is True and rows[0]["limit"] == figures["margin"]
        played[name] = figures["full"]["episodes"]
    assert played["strict"] > 2 * played["default"] > 2 * played["explore"]


def drawn(rng, n: int, discordant: float, loss: float):
    """Outcomes of pairs that differ in `discordant` of all, the compressed model behind by `loss` on average."""
    u, worse = rng.random(n), (discordant + loss) / 2
    return [(3, None) if v < worse else (None, 3) if v < discordant else (3, 3) for v in u]


@pytest.mark.parametrize("discordant", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("name", ["strict", "default", "explore"])
def test_stopping_early_keeps_the_error_rate(name, discordant):
    """Models exactly the margin worse are let through by at most one run in twenty, looked at after every pair."""
    preset = gates.NAMED[name]
    rng, margin, runs = np.random.default_rng(7), preset.limits["closed_loop_loss"], 400
    sequences = [drawn(rng, 300, max(discordant, margin), margin) for _ in range(runs)]
    decisions = [statistics.noninferiority([closed_loop.change(p) for p in pairs], margin) for pairs in sequences]
    assert sum(d.decision is True for d in decisions) <= 0.05 * runs
    pairs = iter(sequences[0])  # and a run stops where that test is first decided
    figures, _ = closed_loop.run(lambda seed: next(pairs), 300, 0, quiet, preset)
    assert figures["full"]["episodes"] == decisions[0].episodes

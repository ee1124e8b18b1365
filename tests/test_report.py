"""The page holds everything it shows, says what was judged, and never shows what was measured on other bytes."""

from __future__ import annotations

import base64
import dataclasses
import html.parser
import json
import re
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from test_profile import tick
from test_validate import PLANNER as TOY_PLANNER
from test_validate import PORTS, Toy, side

from edgewm import charts, report
from edgewm import format as ewm_format
from edgewm.errors import EdgewmError
from edgewm.judge import gates, picture
from edgewm.profile import summarise
from edgewm.program import Planner


def write_bundle(folder, precision: str = "w8a8"):
    planner = Planner(samples=128, iterations=8, elites=12, horizon=5, action_block=5, commit_steps=5)
    manifest = {
        "target": "host", "mode": "AS_IS", "precision": precision, "rate_hz": 20.0, "threads": 1, "ports": [],
        "planner": dataclasses.asdict(planner), "family": "torch_world.lewm",
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "model.ewm").write_bytes(ewm_format.pack({"manifest": json.dumps(manifest).encode()}, "t", bytes(32)))
    return folder


def profiled(plans: int = 600) -> dict:
    rng = np.random.default_rng(0)
    late = rng.lognormal(11.3, 0.25, 3000)
    late[1500:1503] = [7e6, 5e6, 3e6]
    found = summarise(tick(late, rng.lognormal(17.0, 0.08, plans), rng.lognormal(17.8, 0.1, 3000)))
    return found | {
        "rate_hz": 20.0, "threads": 2, "peak_fraction": 0.41,
        "environment": {"cores": 2, "governor": None, "kernel": "6.1"},
        "stages": {"product_i8": 0.62, "attention": 0.2, "map": 0.1, "reduce": 0.05, "barriers": 0.03},
    }  # fmt: skip


def judged(passed: bool = True) -> dict:
    rng = np.random.default_rng(1)
    cost = rng.gamma(3, 0.1, 128)
    rows = [
        gates.judged("spearman_min", 0.996 if passed else 0.71, 50),
        gates.judged("elite_overlap", 0.968, 50, (0.955, 0.98)),
        gates.judged("regret", 0.002, 50, (-0.001, 0.006)),
        gates.judged("drift", 0.03, 50, (0.025, 0.035)),
    ]
    drift = [0.006, 0.011, 0.017, 0.022, 0.026, 0.03]
    return {
        "passed": gates.verdict(rows), "against": "reference", "gates": rows,
        "plan": {
            "drift_by_step": drift,
            "scatter": {"full": cost.tolist(), "compressed": (cost + rng.normal(0, 0.006, 128)).tolist(),
                        "part": (np.arange(128) * 3 // 128).tolist()},
        },
        "horizon": {"full_error_by_step": [0.0, 0.09, 0.14, 0.18, 0.22, 0.27],
                    "compressed_error_by_step": [0.01, 0.09, 0.142, 0.183, 0.224, 0.273]},
        "closed_loop": {"full": {"successes": 44, "episodes": 50, "wilson_95": [0.76, 0.94]},
                        "compressed": {"successes": 43, "episodes": 50, "wilson_95": [0.74, 0.93]}},
    }  # fmt: skip


def imagined() -> dict:
    frames = np.random.default_rng(2).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    return picture.as_json(picture.Futures(frames, frames[::-1], frames, np.arange(6) * 0.25))


VOID = ("meta", "img", "br", "rect", "line", "circle", "path", "polyline")


class Wellformed(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.links = [], []

    def handle_starttag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def checked(path) -> str:
    text = path.read_text(encoding="utf-8")
    reader = Wellformed()
    reader.feed(text)
    assert reader.open == [] and all(link.startswith("data:image/png;base64,") for link in reader.links)
    assert "<script" not in text and "@import" not in text and "url(" not in text and "http" not in text
    assert not re.search(r"\b(nan|inf|None)\b", re.sub(r"<[^>]*>", " ", text))
    assert not re.search(r'="[^"]*\b(nan|inf)\b', text)
    return text


def whole(folder):
    write_bundle(folder)
    report.add(folder, "profile", profiled())
    report.add(folder, "validate", judged())
    report.add(folder, "futures", imagined())
    run = {"successes": 9, "episodes": 10, "wilson_95": [0.6, 0.98], "env": "reference", "plan_ms": {"p50": 24.0}}
    return report.add(folder, "run", run)


def test_the_whole_page(tmp_path):
    text = checked(whole(tmp_path))
    for words in (
        "It plans like the full model: all 4 gates passed.", "128 samples × 8 iterations × 5 actions", "what came",
        "this bundle imagined", "spearman min", "product_i8", "41 % of this machine", "9 of 10 episodes",
        "Not told by this machine: governor", "full 44/50", "+1.25 s",
    ):  # fmt: skip
        assert words in text, words
    assert len(text) < 200_000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.ewm", "report.html", "report.json"]


def test_a_bundle_that_nobody_judged_says_so(tmp_path):
    text = checked(report.add(write_bundle(tmp_path), "profile", profiled(plans=60)))
    assert "Not judged yet" in text and "Not validated yet." in text
    assert "p99 of plan time needs 299 (has 60)" in text and "withheld" in text


def test_a_failed_and_an_undecided_verdict_are_told(tmp_path):
    write_bundle(tmp_path)
    assert "It does not plan like the full model: spearman min failed." in checked(
        report.add(tmp_path, "validate", judged(False))
    )
    few = judged()
    few["gates"] = [gates.judged("regret", float("nan"), 3)]
    few |= {"passed": None, "plan": None, "horizon": None, "closed_loop": None}
    text = checked(report.add(tmp_path, "validate", few))
    assert "Not enough evidence" in text and "3 independent samples, 50 needed" in text and "not a number" in text


def test_parts_of_other_bytes_are_dropped(tmp_path):
    whole(tmp_path)
    write_bundle(tmp_path, precision="fp32")
    report.add(tmp_path, "profile", profiled())
    found = json.loads((tmp_path / "report.json").read_text())
    assert "validate" not in found and "profile" in found


def test_a_page_that_cannot_be_written_is_refused(tmp_path):
    write_bundle(tmp_path)
    (tmp_path / "report.html").mkdir()
    with pytest.raises(EdgewmError, match="the report cannot be written"):
        report.add(tmp_path, "profile", profiled())


def test_words_from_outside_stay_words(tmp_path):
    write_bundle(tmp_path)
    assert "<b>bad" not in report.add(tmp_path, "validate", judged() | {"against": "<b>bad"}).read_text()


def test_png_comes_back():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    data = base64.b64decode(charts.png(image))
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", data[16:24]) == (7, 5)
    length = struct.unpack(">I", data[33:37])[0]
    rows = np.frombuffer(zlib.decompress(data[41 : 41 + length]), np.uint8).reshape(5, 22)
    assert (rows[:, 0] == 0).all() and np.array_equal(rows[:, 1:].reshape(5, 7, 3), image)


def test_charts_of_odd_data():
    assert "nothing was measured" in charts.histogram([], [], "ms")
    one = charts.histogram([[3.0, 1]], [("p50", 3.0, "quantile")], "ms")
    assert "p50 3 ms" in one
    assert charts.histogram([[0.0, 5], [1e5, 1]], [], "ms").count('class="bar"') == 2
    assert "no candidate" in charts.scatter([None], [1.0], [0], "x", "y")
    assert "<circle" in charts.scatter([1.0, 1.0], [1.0, 1.0], [0, 1], "x", "y")
    assert "nothing was measured" in charts.lines([("a", [None], "full")], [0], "x", "y")
    low, high, ticks = charts.scale(0.013, 0.97)
    assert low <= 0.013 and high >= 0.97 and 4 <= len(ticks) <= 7


def test_imagined_futures_are_what_the_gallery_knows():
    toy = Toy()
    rng = np.random.default_rng(3)
    frames = rng.integers(0, 256, (9, 4, 4, 3), dtype=np.uint8)
    shown = np.concatenate([frames[:1], rng.integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)])
    actions = rng.uniform(-1, 1, (8, 2))
    found = picture.futures(
        side(toy), side(toy), TOY_PLANNER, "pixels", PORTS[2], lambda periods, seed: (frames, actions, shown), 20.0, 0
    )
    assert found.real.shape == found.full.shape == (5, 4, 4, 3)
    assert np.array_equal(found.full, found.compressed) and np.array_equal(found.full[0], frames[0])
    assert found.seconds.tolist() == [0, 0.1, 0.2, 0.3, 0.4]


def test_a_film_of_an_episode(tmp_path):
    image = pytest.importorskip("PIL.Image")
    from edgewm.film import Film
    from edgewm.reference import world

    arena = world.make(3)
    seen = arena.reset(3)
    film = Film(SimpleNamespace(rate_hz=20.0))
    for period in range(1, 6):
        film.add(arena, seen, period, 24.0)
        seen = arena.step(np.float32([1, 0]))
    film.hold(True, frames=2)
    film.save(tmp_path / "a.gif")
    with image.open(tmp_path / "a.gif") as made:
        assert made.n_frames >= 3 and made.size[0] > 400 and made.info["duration"] in range(100, 400)
    assert [p.name for p in tmp_path.iterdir()] == ["a.gif"]
    with pytest.raises(EdgewmError, match="nothing was filmed"):
        Film(SimpleNamespace(rate_hz=20.0)).save(tmp_path / "b.gif")

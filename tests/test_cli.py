"""The command line: help, refusals in three lines, JSON that nothing else spoils, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

from edgewm import cli, cli_verb, console
from edgewm.cli import cli as group
from edgewm.errors import EdgewmError

VERBS = ("build", "distill", "profile", "validate", "run", "show", "targets", "estimate", "doctor", "demo")


def refused(arguments: list[str], capsys: pytest.CaptureFixture) -> list[str]:
    """Run a command line that must be refused: exit code 2, nothing on stdout; the three lines."""
    assert cli.execute(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert [line.split(":")[0].strip() for line in lines] == ["error", "where", "fix"]
    return lines


def test_help_names_every_verb(capsys: pytest.CaptureFixture) -> None:
    assert cli.execute(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {verb}" in text for verb in VERBS)
    assert sorted(group.commands) == sorted(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture) -> None:
    assert cli.execute([verb, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: edgewm {verb}")


def test_every_verb_takes_json_and_those_that_draw_a_seed() -> None:
    commands = [c for c in group.commands.values() if not isinstance(c, click.Group)]
    commands += list(group.commands["targets"].commands.values())
    options = {c.name: {o for p in c.params for o in p.opts} for c in commands}
    assert all("--json" in found for found in options.values())
    drawing = {name for name, found in options.items() if "--seed" in found}
    assert drawing == {"build", "distill", "validate", "run", "demo"}


def test_help_imports_nothing_heavy() -> None:
    show = "import sys; from edgewm import cli; cli.execute(['--help']); print(*sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", show], check=True, capture_output=True, text=True)
    assert not {"torch", "torch_world", "numpy", "rich", "ziglang"} & set(done.stderr.split())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("build", "Missing argument 'MODEL'"),
        ("build reference --target orinn", "no target is named 'orinn'"),
        ("build reference --target orin --mode 60W", "has no power mode '60W'"),
        ("build reference --target orin --isa avx2", "cannot run 'avx2' kernels"),
        ("build reference --precision fp7", "'fp7' is not one of 'fp32', 'bf16', 'bf16_all', 'w8a8'"),
        ("build reference --place gpu", "host has no GPU that kernels can be compiled for"),
        ("build reference --place dla", "'dla' is not one of 'auto', 'cpu', 'gpu'"),
        ("build reference --samples 0", "0 is not in the range x>=1"),
        ("build reference --rate-hz 0", "0.0 is not in the range 0.001<=x<=1000000.0"),
        ("build reference --rate-hz nan", "nan is no rate"),
        ("build reference --rate-hz fast", "'fast' is not a valid float"),
        ("build reference --seed -1", "-1 is not in the range x>=0"),
        ("build reference --bogus", "No such option"),
        ("profile out --load net", "'net' is not one of 'cpu', 'memory', 'disk', 'gpu'"),
        ("profile out --slo fast", "'fast' is not like 'p99=20ms'"),
        ("profile out --device me@board", "'me@board' is no device"),
        ("profile out --pin two", "'two' is not like '2', '2,3' or '2-5'"),
        ("profile out --fifo 1", "1 is not in the range 2<=x<=99"),
        ("doctor --device telnet://board", "'telnet://board' is no device"),
        ("validate out", "Missing option '--against'"),
        ("validate out --against reference --suite plan,luck", "'luck' is not one of 'plan', 'physics'"),
        ("targets show moon", "no target is named 'moon'"),
        ("show nothing", "no bundle or model 'nothing'"),
        ("doctor --skip luck", "no check is named 'luck'"),
        ("frobnicate", "No such command 'frobnicate'"),
    ],
)
def test_refusals(line: str, message: str, capsys: pytest.CaptureFixture) -> None:
    first, _, last = refused(line.split(), capsys)
    assert message in first
    assert len(last) > len("  fix: ")


def test_refusals_name_the_argument_that_was_given(capsys: pytest.CaptureFixture) -> None:
    assert refused(["targets", "show", "moon"], capsys)[1] == "  where: NAME of `edgewm targets show`"
    assert refused(["show", "nothing"], capsys)[1] == "  where: PATH or MODEL"


def test_suites_are_those_the_judge_has() -> None:
    from edgewm.validate import SUITES

    assert cli.SUITES == SUITES


def test_json_on_stdout_is_alone_there(capsys: pytest.CaptureFixture) -> None:
    for line in ("targets list", "targets show orin", "targets show host --toml"):
        assert cli.execute([*line.split(), "--json", "-"]) == 0
        assert json.loads(capsys.readouterr().out)["schema_version"] == cli_verb.SCHEMA_VERSION


def test_shapes_are_named(capsys: pytest.CaptureFixture) -> None:
    assert cli.execute(["estimate", "shape:?"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert cli.execute(["estimate", "shape:?", "--json", "-"]) == 0
    assert [f"shape:{name}" for name in json.loads(capsys.readouterr().out)["shapes"]] == told
    assert {"shape:vit-b-16", "shape:product"} <= set(told)


def test_a_runtime_that_is_never_estimated_is_no_choice(capsys: pytest.CaptureFixture) -> None:
    told = refused(["estimate", "shape:vit-b-16", "--target", "orin", "--runtime", "eager"], capsys)
    assert "'eager' is not one of 'fused', 'graph'" in "\n".join(map(str, told))


def test_the_help_of_a_bound_says_the_exit_statuses(capsys: pytest.CaptureFixture) -> None:
    assert cli.execute(["profile", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "Exit with 1 where a plan takes longer, 2 where the run is too short to tell." in told
    assert "Exit status: 0 the run ended, and --slo was met; 1 it was not; 2 it could not run" in told


def test_json_in_a_file_leaves_the_table(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "new" / "targets.json"
    assert cli.execute(["targets", "list", "--json", str(file)]) == 0
    assert "jetson_agx_orin_64gb" in capsys.readouterr().out
    found = {row["name"]: row for row in json.loads(file.read_text())["targets"]}
    assert found["jetson_agx_orin_64gb"]["modes"] == ["MAXN", "15W", "30W", "50W"]


def test_json_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.execute(["targets", "list", "--json", str(tmp_path)]) == 2
    assert "cannot write JSON: Is a directory" in capsys.readouterr().err


def test_json_that_cannot_be_written_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("edgewm.doctor.examine", lambda skip: pytest.fail("the verb ran"))
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file" / "x.json"):
        assert "cannot write JSON" in refused(["doctor", "--json", str(place)], capsys)[0]
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def shown(table: object) -> str:
    from rich.console import Console

    console = Console(width=160)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_a_profile_prints_what_it_found() -> None:
    row = {"p50": 7.0, "p99": None, "p999": None, "max": 9.0}
    result = {
        "device": "local", "target": "host", "mode": "AS_IS", "rate_hz": 20.0, "ticks": 200, "plans_per_s": 3.0,
        "act_late_ms": row, "plan_ms": row, "plan_age_ms": row, "misses": 1, "miss_rate_upper": 0.02,
        "loaded": {"load": "cpu", "act_late_ms": row, "plan_ms": row, "misses": 5}, "peak_fraction": 0.4,
        "slo": "p99=20ms", "slo_met": None, "stages": {"product": 0.7, "map": 0.3},
        "kernels": [
            {"family": family, "dims": [4, 2], "lanes": 8, "does": "y", "calls": 1, "ms": ms, "share": ms / 4,
             "gflops": None, "gbps": None, "limit_ms": None, "of_limit": None}
            for family, ms in (("product", 3.0), ("map", 1.0))
        ],
        "withheld": {"plan_ms.p99": {"samples": 200, "needs": 299}},
    }  # fmt: skip
    text = shown(console.profile_table(result))
    for words in (
        "plan, cpu busy", "cpu busy: 5 misses", "40 % of this machine's measured peak",
        "p99=20ms: not enough samples to tell", "product 70 %, map 30 %", "75.0%", "product 4x2, 8 lanes",
        "withheld plan p99: 200 samples, 299 needed",
    ):  # fmt: skip
        assert words in text, words


def test_a_profile_on_a_gpu_says_what_its_graphs_took_and_how_kernels_were_timed() -> None:
    row = {"p50": 7.0, "max": 9.0}
    gpu = {"sm": 87, "module": "ptx", "graph_nodes": 400, "graph_bytes": 25_000_000, "graph_ns": 120_000_000,
           "stamp_ns": 1500, "launched": "together", "measured": "apart"}  # fmt: skip
    result = {
        "device": "local",
        "target": "orin",
        "mode": "MAXN",
        "rate_hz": 20.0,
        "ticks": 200,
        "plan_ms": row,
        "gpu": gpu,
    }
    text = shown(console.profile_table(result))
    for words in (
        "graphs of 400 launches and copies: 25 MB of the GPU, made in 120 ms", "compiled the kernels from PTX",
        "timed in launches of their own; the plan runs them together",
    ):  # fmt: skip
        assert words in text, text
    assert "PTX" not in shown(console.profile_table(result | {"gpu": gpu | {"module": "cubin"}}))


def test_a_verdict_prints_its_notes_and_intervals() -> None:
    gate = {"name": "spearman", "value": 0.9, "limit": 0.99, "passed": None, "note": "5 samples, 50 needed"}
    side = {"successes": 9, "episodes": 10, "wilson_95": [0.6, 0.98]}
    result = {"passed": None, "gates": [gate], "closed_loop": {"full": side, "compressed": side}}
    text = shown(console.validate_table(result))
    assert "spearman: 5 samples, 50 needed" in text and text.count("9 of 10 (60 to 98 %)") == 2


def test_a_run_prints_its_figures_and_no_dictionaries() -> None:
    result = {
        "env": "reference", "rate_hz": 20.0, "episodes": 3, "successes": 3, "wilson_95": [0.44, 1.0], "gif": "a.gif",
        "plan_ms": {"p50": 6.0, "max": 8.0, "plans": 30}, "periods": {"median": 50.0, "max": 60},
    }  # fmt: skip
    text = shown(console.run_table(result))
    assert "3 of 3 (44 to 100 %)" in text and "p50 6, max 8 ms of 30" in text and "a.gif" in text and "{" not in text


def test_the_demo_holds_its_rate_or_says_not() -> None:
    from edgewm.demo import clock_of

    timed = {"rate_hz": 20.0, "misses": 0, "plan_ms": {"p50": None, "p99": None, "max": 249.0}}
    assert clock_of(timed, 5)["holds"] and clock_of(timed, 5)["until_next_plan_ms"] == 250.0
    for slowest in (251.0, None):
        assert not clock_of({**timed, "plan_ms": {"p50": 100.0, "p99": None, "max": slowest}}, 5)["holds"]
    assert not clock_of({**timed, "misses": 1}, 5)["holds"]


def test_targets_alone_lists(capsys: pytest.CaptureFixture) -> None:
    assert cli.execute(["targets"]) == 0
    assert "orin-nano" in capsys.readouterr().out


def test_doctor_skips_and_says_what_mends(capsys: pytest.CaptureFixture) -> None:
    assert cli.execute(["doctor", "--skip", "torch", "--json", "-"]) == 0
    captured = capsys.readouterr()
    checks = {check["id"]: check for check in json.loads(captured.out)["checks"]}
    assert "torch" not in checks and checks["python"]["state"] == "ok"
    assert all(check["fix"] for check in checks.values() if check["state"] != "ok")
    assert "python" in captured.err


@pytest.fixture
def verb_that(monkeypatch: pytest.MonkeyPatch):
    """A verb `frob` that raises what it is given."""

    def install(fault: BaseException) -> None:
        @click.command()
        def frob() -> None:
            raise fault

        monkeypatch.setitem(group.commands, "frob", frob)

    return install


def test_own_faults_keep_their_trace_and_the_last_good_program(verb_that, capsys: pytest.CaptureFixture) -> None:
    fault = ZeroDivisionError("oh")
    fault.last_program = Path("/tmp/last.ewm")
    verb_that(fault)
    assert cli.execute(["frob"]) == cli.OWN_FAULT
    told = capsys.readouterr().err
    assert "Traceback" in told and "ZeroDivisionError: oh" in told and "the last good program: /tmp/last.ewm" in told


def test_faults_of_the_user_have_three_lines(verb_that, capsys: pytest.CaptureFixture) -> None:
    verb_that(EdgewmError("the what", "the where", "the fix"))
    assert refused(["frob"], capsys) == ["error: the what", "  where: the where", "  fix: the fix"]


def test_an_interrupt_is_130(verb_that, capsys: pytest.CaptureFixture) -> None:
    verb_that(KeyboardInterrupt())
    assert cli.execute(["frob"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_table_in_a_file_is_as_wide_as_it_needs(capsys: pytest.CaptureFixture) -> None:
    words = [f"column_{i:02}" for i in range(12)]
    cli_verb._print(console.table("wide", *words), to_stderr=False)
    shown = capsys.readouterr().out
    assert all(word in shown for word in words)  # in 80 columns they would be cut

"""The command line: help, refusals in three lines, JSON that nothing else spoils, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from edgewm import cli
from edgewm.cli import cli as group
from edgewm.errors import EdgewmError

VERBS = ("build", "profile", "validate", "run", "show", "targets", "doctor", "demo")


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
    assert drawing == {"build", "profile", "validate", "run", "demo"}


def test_help_is_instant() -> None:
    def seconds() -> float:
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "edgewm", "--help"], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - begun

    # The least of five: what the machine does besides only adds.
    assert min(seconds() for _ in range(5)) < 0.3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("build", "Missing argument 'MODEL'"),
        ("build reference --target orinn", "no target is named 'orinn'"),
        ("build reference --target orin --mode 60W", "has no power mode '60W'"),
        ("build reference --target orin --isa avx2", "cannot run 'avx2' kernels"),
        ("build reference --precision fp8", "'fp8' is not one of 'fp32', 'w8a8'"),
        ("build reference --planner mppi", "'mppi' is not"),
        ("build reference --place gpu", "'gpu' is not one of 'auto', 'cpu'"),
        ("build reference --samples 0", "0 is not in the range x>=1"),
        ("build reference --rate-hz 0", "0.0 is not in the range 0.001<=x<=1000000.0"),
        ("build reference --rate-hz nan", "nan is no rate"),
        ("build reference --rate-hz fast", "'fast' is not a valid float"),
        ("build reference --seed -1", "-1 is not in the range x>=0"),
        ("build reference --bogus", "No such option"),
        ("profile out --load disk", "'disk' is not one of 'cpu', 'memory'"),
        ("profile out --slo fast", "'fast' is not like 'p99=20ms'"),
        ("profile out --device board", "'board' is not one of 'local', 'ssh://user@host'"),
        ("validate out", "Missing option '--against'"),
        ("validate out --against reference --suite plan,luck", "'luck' is not one of 'plan', 'horizon', 'closed-loop'"),
        ("targets show moon", "no target is named 'moon'"),
        ("doctor --skip luck", "no check is named 'luck'"),
        ("frobnicate", "No such command 'frobnicate'"),
    ],
)
def test_refusals(line: str, message: str, capsys: pytest.CaptureFixture) -> None:
    first, _, last = refused(line.split(), capsys)
    assert message in first
    assert len(last) > len("  fix: ")


def test_suites_are_those_the_judge_has() -> None:
    from edgewm.validate import SUITES

    assert cli.SUITES == SUITES


def test_json_on_stdout_is_alone_there(capsys: pytest.CaptureFixture) -> None:
    for line in ("targets list", "targets show orin", "targets probe"):
        assert cli.execute([*line.split(), "--json", "-"]) == 0
        assert json.loads(capsys.readouterr().out)["schema_version"] == cli.SCHEMA_VERSION


def test_json_in_a_file_leaves_the_table(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "new" / "targets.json"
    assert cli.execute(["targets", "list", "--json", str(file)]) == 0
    assert "jetson_agx_orin_64gb" in capsys.readouterr().out
    found = {row["name"]: row for row in json.loads(file.read_text())["targets"]}
    assert found["jetson_agx_orin_64gb"]["modes"] == ["MAXN", "15W", "30W", "50W"]


def test_json_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.execute(["targets", "list", "--json", str(tmp_path)]) == 2
    assert "cannot write JSON: Is a directory" in capsys.readouterr().err


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

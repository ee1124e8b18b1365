"""Shared by all tests: tools pip cannot bring, golden files, the qemu command."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgewm.doctor import TOOLS, find_tool

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-tools", action="store_true", help="a missing tool fails its tests, not skips them")
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden from what the code gives now")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """`@pytest.mark.needs("qemu-aarch64")`: skip by name, with the line that installs the tool, where it is missing."""
    for name in [name for mark in item.iter_markers("needs") for name in mark.args]:
        if find_tool(name) is None:
            reason = f"{name} is missing; {TOOLS[name].install}"
            if TOOLS[name].in_ci and item.config.getoption("--require-tools"):
                pytest.fail(reason, pytrace=False)
            pytest.skip(reason)


@pytest.fixture(scope="session")
def qemu_orin() -> list[str]:
    """The words before an aarch64 program that run it as a Cortex-A76: dotprod and fp16 but no i8mm, like Orin's."""
    from edgewm.doctor import qemu_command

    command = qemu_command("cortex-a76")
    if command is None:
        pytest.skip(f"qemu-aarch64 is missing; {TOOLS['qemu-aarch64'].install}")
    return command


@pytest.fixture
def golden(request: pytest.FixtureRequest):
    """`golden(name, text)` compares with tests/golden/name; `--update-golden` rewrites it."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert path.is_file(), f"no golden file {name}: run pytest --update-golden and read what it wrote"
        assert text == path.read_text()

    return check


@pytest.fixture(scope="session")
def cores() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0))

"""Shared by all tests: tools pip cannot bring, the qemu command."""

from __future__ import annotations

import os

import pytest

from edgewm.doctor import TOOLS, find_tool


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-tools", action="store_true", help="a missing tool fails its tests, not skips them")


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


@pytest.fixture(scope="session")
def cores() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0))

"""edgewm-tick under a clock that only it moves, so that a planted fault is the same in every run of a test."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import runtime_fixture as fixture

from edgewm import toolchain
from edgewm.paths import RUNTIME
from edgewm.profile import run_tick

SOURCE = Path(__file__).with_name("virtual_clock.cc")


@functools.cache
def library() -> Path:
    """The clock, built beside the hand-made bundle."""
    out = fixture.bundle() / "virtual_clock.so"
    return toolchain.compile_library({SOURCE.name: SOURCE.read_text()}, [RUNTIME], flags=fixture.FLAGS, out=out)


def virtual_run(
    rate_hz: float, ticks: int, *flags: str, fault: str | None = None, at: int = 0, size: int = 0, **more: int
) -> Mapping[str, Any]:  # fmt: skip
    """One run of the real runner, on one thread. What is planted: see virtual_clock.cc."""
    told = {"VIRTUAL_AT": at, "VIRTUAL_SIZE": size, **{f"VIRTUAL_{k.upper()}": v for k, v in more.items()}}
    told |= {"VIRTUAL_FAULT": fault} if fault else {}
    words = ["env", f"LD_PRELOAD={library()}", *(f"{name}={value}" for name, value in told.items())]
    own = [] if "--inline" in flags else ["--inline", "--replan", "free"]
    return run_tick(
        fixture.bundle(), rate_hz, ticks, 1, *own, *flags, command=lambda command: [*words, *command]
    )

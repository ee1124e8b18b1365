"""A scheduled program as files: the sections of `model.ewm`, and the library, runner and header compiled for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import format as ewm
from .emit import emit
from .kernel import features, load
from .paths import KERNELS
from .program import Program
from .schedule import Schedule
from .target import Target, compile_flags
from .toolchain import build_runtime


def target_name(board: Target) -> str:
    """What file and library call the machine they are for."""
    return f"{board.machine}-{board.isa}"


def compile_bundle(
    program: Program, schedule: Schedule, manifest: Mapping, board: Target, folder: Path
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The file's sections without golden answers, and the library, runner and header in `folder`."""
    sections, source = emit(program, schedule, manifest)
    kernels_sha256 = source.sha256()
    text = source.text(target_name(board), kernels_sha256, ewm.program_sha256(sections))
    flags = (*compile_flags(board, *features(source.families)), *load("product").TILING[board.isa].defines)
    build_runtime({"kernels.cc": text}, [KERNELS], flags=flags, folder=folder)
    return sections, {"folder": folder, "kernels_sha256": kernels_sha256}


def pack(sections: Mapping[str, bytes], board: Target, paths: Mapping[str, Any]) -> bytes:
    return ewm.pack(sections, target_name(board), paths["kernels_sha256"])

"""What a bundle says of itself: the manifest section of `model.ewm`, as values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .errors import EdgewmError
from .format import unpack
from .options import BACKENDS, NATIVE
from .program import Planner, Port

BACKEND_MANIFEST = "manifest.json"  # of a bundle that another runtime runs
CALIBRATION = "calibration_sha256"  # of recorded data that steps or formats were chosen by


@dataclass(frozen=True)
class Manifest:
    """Everything in the manifest (`raw`), and what every verb asks for by name; `sha256` is of `model.ewm`, and of
    `manifest.json`, which holds that of every file, where another runtime runs the bundle."""

    sha256: str
    target: str
    mode: str
    precision: str
    rate_hz: float
    threads: int
    planner: Planner
    ports: tuple[Port, ...]
    raw: Mapping[str, Any]

    @property
    def backend(self) -> str:
        """What runs the bundle, one of `options.BACKENDS`."""
        return self.raw.get("backend", NATIVE)

    @property
    def file(self) -> str:
        """What `sha256` is of."""
        return "model.ewm" if self.backend == NATIVE else BACKEND_MANIFEST

    def ports_of(self, kind: str) -> tuple[Port, ...]:
        """The ports of one kind, in order; goal ports answer observation ports one by one."""
        return tuple(p for p in self.ports if p.kind == kind)


def read_manifest(bundle: Path) -> Manifest:
    """The manifest of the bundle directory. EdgewmError without a whole `model.ewm` or `manifest.json`."""
    file, other = (Path(bundle) / name for name in ("model.ewm", BACKEND_MANIFEST))
    if other.is_file() and not file.exists():
        return _manifest(other.read_bytes(), _of_backend(other))
    if not file.is_file():
        raise EdgewmError("no model.ewm", str(bundle), "give the directory that `edgewm build` wrote")
    data = file.read_bytes()
    try:
        sections = unpack(data)
    except EdgewmError as fault:
        raise EdgewmError(fault.what, str(file), fault.fix) from fault
    if "manifest" not in sections:
        raise EdgewmError("no manifest section", str(file), "build the bundle again")
    return _manifest(data, json.loads(sections["manifest"]))


def _of_backend(file: Path) -> dict[str, Any]:
    try:
        raw = json.loads(file.read_bytes())
    except ValueError as fault:
        raise EdgewmError(f"not JSON: {fault}", str(file), "copy or build the bundle again") from fault
    if not isinstance(raw, dict) or raw.get("backend") not in BACKENDS:
        raise EdgewmError("it names no backend of this edgewm", str(file), f"build for one of {', '.join(BACKENDS)}")
    return raw


def _manifest(data: bytes, raw: dict[str, Any]) -> Manifest:
    return Manifest(
        sha256=hashlib.sha256(data).hexdigest(),
        target=raw["target"],
        mode=raw["mode"],
        precision=raw["precision"],
        rate_hz=float(raw["rate_hz"]),
        threads=int(raw["threads"]),
        planner=_value(Planner, raw["planner"]),
        ports=tuple(_value(Port, p) for p in raw["ports"]),
        raw=raw,
    )


def _value(kind: type, given: Mapping[str, Any]) -> Any:
    """A frozen value out of JSON: unknown keys are for people, lists are tuples."""
    known = {f.name for f in fields(kind)}
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if k in known})

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
from .program import Planner, Port


@dataclass(frozen=True)
class Manifest:
    """Everything in the manifest (`raw`), and what every verb asks for by name; `sha256` is of `model.ewm`."""

    sha256: str
    target: str
    mode: str
    precision: str
    rate_hz: float
    threads: int
    planner: Planner
    ports: tuple[Port, ...]
    raw: Mapping[str, Any]

    def ports_of(self, kind: str) -> tuple[Port, ...]:
        """The ports of one kind, in order; goal ports answer observation ports one by one."""
        return tuple(p for p in self.ports if p.kind == kind)


def read_manifest(bundle: Path) -> Manifest:
    """The manifest of the bundle directory. EdgewmError when there is no whole `model.ewm` in it."""
    file = Path(bundle) / "model.ewm"
    if not file.is_file():
        raise EdgewmError("no model.ewm", str(bundle), "give the directory that `edgewm build` wrote")
    data = file.read_bytes()
    try:
        sections = unpack(data)
    except EdgewmError as fault:
        raise EdgewmError(fault.what, str(file), fault.fix) from fault
    if "manifest" not in sections:
        raise EdgewmError("no manifest section", str(file), "build the bundle again")
    raw = json.loads(sections["manifest"])
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

"""The power mode that a machine was in while it was timed, beside the one that its bundle was built for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .manifest import Manifest
from .target import resolve


def mode_there(target: str, environment: Mapping[str, Any]) -> str | None:
    """The mode as the machine says it (`power_mode` of `environment.record`), spelled as `target` does where that has
    it; the target's only one where it has no choice, None where nothing is known."""
    modes = resolve(target)[0].mode
    if environment["power_mode"] is None:
        return modes[0].name if len(modes) == 1 else None
    said = environment["power_mode"]["name"]
    return next((mode.name for mode in modes if mode.is_named(said)), said)


def run_in(manifest: Manifest, mode: str | None) -> Manifest:
    """The manifest as of a bundle for the mode it ran in. A target that is no board of its own runs as it is."""
    return replace(manifest, mode=mode) if resolve(manifest.target)[0].boards else manifest


def another_mode(manifest: Manifest, mode: str | None) -> dict[str, Any] | None:
    """The finding that a bundle ran in another mode than the one it was built for."""
    found = run_in(manifest, mode).mode
    if found is None or found == manifest.mode:
        return None
    return {
        "name": "another mode", "mode": found, "built_for_mode": manifest.mode,
        "words": f"the board is in power mode {found}, the bundle was built for {manifest.mode}: "
        "what it was expected to reach there says nothing of this run",
    }  # fmt: skip

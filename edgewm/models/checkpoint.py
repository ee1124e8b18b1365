"""Checkpoint directories: `config.json` beside `weights.safetensors` or `weights.pt`, read without running code."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..constants import check_finite
from ..errors import EdgewmError

WEIGHTS = ("weights.safetensors", "model.safetensors", "weights.pt")


def read_config(path: Path) -> dict[str, Any]:
    """The object in `config.json`. EdgewmError when there is none or it is not JSON."""
    file = path / "config.json"
    if not file.is_file():
        raise EdgewmError("no config.json", str(path), "give a checkpoint directory that holds config.json and weights")
    return read_object(file)


def read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file. EdgewmError when it cannot be read, is not JSON, or holds something else."""
    fix = "export the checkpoint again" if file.name == "config.json" else "write it as a JSON object"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise EdgewmError(f"{file.name} is not JSON: {fault}", str(file), fix) from fault
    except OSError as fault:
        raise EdgewmError(f"{file.name} cannot be read: {fault.strerror}", str(file), "make it readable") from fault
    if not isinstance(found, dict):
        raise EdgewmError(f"{file.name} holds no object", str(file), fix)
    return found


def weights_file(path: Path) -> Path:
    """The one weights file of the directory. EdgewmError when there is none, or several."""
    found = [path / name for name in WEIGHTS if (path / name).is_file()] or sorted(path.glob("*.pt"))
    if not found:
        pickled = sorted(p.name for pattern in ("*.ckpt", "*.pth", "*.pkl", "*.bin") for p in path.glob(pattern))
        if pickled:
            raise EdgewmError(
                f"{pickled[0]} is a pickled checkpoint: loading it would run its code", str(path),
                "where you trust it, save its state dict alone: torch.save(model.state_dict(), 'weights.pt')",
            )  # fmt: skip
        raise EdgewmError("no weights", str(path), f"put one of {', '.join(WEIGHTS)} beside config.json")
    if len(found) > 1 and found[0].name not in WEIGHTS:
        raise EdgewmError(f"{len(found)} weights files, none named weights.pt", str(path), "keep the one to compile")
    return found[0]


def read_weights(file: Path) -> dict[str, Tensor]:
    """The state dict in a safetensors or weights-only torch file. EdgewmError for pickles and damaged files."""
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except (SafetensorError, OSError) as fault:
            raise EdgewmError(f"not a safetensors file: {fault}", str(file), "copy or export the file again") from fault
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as fault:
        raise EdgewmError(
            "a pickled module instead of a state dict: loading it would run its code", str(file),
            "where you trust it, save its state dict alone: torch.save(model.state_dict(), 'weights.pt')",
        ) from fault  # fmt: skip
    except (RuntimeError, EOFError, OSError, ValueError) as fault:
        first = str(fault).strip().splitlines()[0] if str(fault).strip() else type(fault).__name__
        raise EdgewmError(f"not a torch file: {first}", str(file), "copy or export the file again") from fault
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise EdgewmError("no state dict inside", str(file), "save model.state_dict() alone")
    return found


def fill(module: torch.nn.Module, weights: Mapping[str, Tensor], where: str, unused: tuple[str, ...] = ()) -> None:
    """Load `weights` into `module`, every one accounted for, as float32; eval mode, no gradients.

    Names starting with one of `unused` may be absent or extra: inference does not read them.
    EdgewmError for a missing, unexpected, wrongly shaped or non-finite weight.
    """
    wanted = {k: v for k, v in module.state_dict().items() if not _unused(k, unused)}
    given = {k: v for k, v in weights.items() if not _unused(k, unused)}
    fix = "use the config.json these weights were trained with, or export them again"
    for what, names in (("missing", wanted.keys() - given.keys()), ("unexpected", given.keys() - wanted.keys())):
        if names:
            raise EdgewmError(f"{what} weight {sorted(names)[0]} ({len(names)} in all)", where, fix)
    for name, tensor in given.items():
        if tensor.shape != wanted[name].shape:
            shapes = f"{tuple(tensor.shape)}, config.json asks for {tuple(wanted[name].shape)}"
            raise EdgewmError(f"weight {name} has shape {shapes}", where, fix)
        if tensor.is_floating_point() != wanted[name].is_floating_point():
            raise EdgewmError(f"weight {name} has dtype {tensor.dtype}", where, "save it as floating point")
        check_finite(name, tensor, where)
    module.load_state_dict({k: v.to(wanted[k].dtype) for k, v in given.items()}, strict=False)
    module.eval().requires_grad_(False)


def _unused(name: str, unused: tuple[str, ...]) -> bool:
    return name.endswith("num_batches_tracked") or name.startswith(unused)


def sha256(*files: Path) -> dict[str, str]:
    """File name -> SHA-256."""
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}

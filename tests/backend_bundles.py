"""Bundles of the tiny LeWM for other runtimes, each built once in a process; and copies to spoil."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from edgewm.build import build
from edgewm.manifest import BACKEND_MANIFEST, read_manifest

PERIOD_NS = 20_000_000


@functools.cache
def bundle(backend: str = "onnxruntime", precision: str = "fp32", target: str = "host") -> Path:
    out = Path(tempfile.mkdtemp(prefix="edgewm-backend-")) / "out"
    build("seen:lewm", backend=backend, precision=precision, target=target, threads=1, out=out)
    return out


def copy_of(source: Path, folder: Path) -> Path:
    return Path(shutil.copytree(source, folder / "copy"))


def signed(bundle: Path, **changed: Any) -> Path:
    """The bundle with the hashes of its files as they are, and other fields of its manifest."""
    raw = {**read_manifest(bundle).raw, **changed}
    raw["files"] = {name: hashlib.sha256((bundle / name).read_bytes()).hexdigest() for name in raw["files"]}
    (bundle / BACKEND_MANIFEST).write_text(json.dumps(raw))
    return bundle


def spoiled(bundle: Path, graph: str = "iterate") -> Path:
    """One weight of a graph doubled, and signed again."""
    file = bundle / f"{graph}.onnx"
    model = onnx.load(file)  # with its weights
    weight = max(model.graph.initializer, key=lambda w: int(np.prod(w.dims)))
    weight.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(weight), weight.name))
    file.write_bytes(model.SerializeToString())
    return signed(bundle)

"""How long a plan takes before it has run: on our CPU kernels call by call, on a board's GPU kernel by kernel.

`counts` says what each call of a schedule does, `cpu` prices it, `machine` has the prices: measured by `probe` (which
times `specimens` at a `site`, by `probe.cc` and `ceilings.cc`, and asks `fit`), or out of a board's facts. `network` is
a network as kernels, from public sizes (`shapes`) or an ONNX file; `gpu` holds them against a board's peaks, at
fractions that `calibration` takes from published rows. `verb` is `edgewm estimate`.
"""

from __future__ import annotations

from .operations import operations

__all__ = ["operations"]

"""A profile as Prometheus text (exposition format 0.0.4), for the node exporter's textfile collector of a fleet."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import EdgewmError

# metric -> (field of the profile, help); times are in seconds there
QUANTITIES = {
    "edgewm_action_lateness_seconds": ("act_late_ms", "Lateness of actions from their intended release."),
    "edgewm_plan_seconds": ("plan_ms", "Time of a plan."),
    "edgewm_plan_age_seconds": ("plan_age_ms", "Age of the plan that is played."),
}
COUNTS = {
    "edgewm_periods": ("ticks", "Control periods run."),
    "edgewm_missed_periods": ("misses", "Periods whose action came a period late or later."),
    "edgewm_missed_periods_in_a_row": ("misses_in_a_row", "Most missed periods in a row."),
    "edgewm_miss_ratio_upper_bound": ("miss_rate_upper", "Upper 95 % confidence bound of the share missed."),
    "edgewm_plans_per_second": ("plans_per_s", "Plans a second."),
    "edgewm_control_rate_hertz": ("rate_hz", "Control rate."),
}
LABELS = ("device", "target", "mode", "precision", "bundle_sha256")
# Bounds of the histograms' buckets: the same for every robot, so that those of a fleet can be added up.
BUCKETS_S = tuple(digit * 10.0**decade for decade in range(-5, 2) for digit in (1, 2, 5))
QUANTILE = {"p50": "0.5", "p99": "0.99", "p999": "0.999"}


def text(result: Mapping[str, Any]) -> str:
    """The whole file. What was withheld is left out: a scrape shows a gap, not a guess."""
    own = {key: str(result[key]) for key in LABELS if result.get(key) is not None}
    lines: list[str] = []
    for metric, (key, help) in QUANTITIES.items():
        lines += _head(metric, f"{help} Histogram of one run.", "histogram")
        buckets = (result.get("histograms") or {}).get(key) or []
        total = sum(count for _, count in buckets)
        for bound_s in BUCKETS_S:
            within = sum(count for upper_ms, count in buckets if upper_ms <= bound_s * 1e3)
            lines.append(f"{metric}_bucket{_labels(own, le=f'{bound_s:g}')} {within}")
        lines.append(f'{metric}_bucket{_labels(own, le="+Inf")} {total}')
        lines.append(f"{metric}_sum{_labels(own)} {sum(u * n for u, n in buckets) / 1e3!r}")
        lines.append(f"{metric}_count{_labels(own)} {total}")
        bound = metric.replace("_seconds", "_upper_bound_seconds")
        lines += _head(bound, f"{help} Upper 95 % confidence bounds of quantiles.", "gauge")
        for name, quantile in QUANTILE.items():
            if result[key].get(name) is not None:
                lines.append(f"{bound}{_labels(own, quantile=quantile)} {result[key][name] / 1e3!r}")
    for metric, (key, help) in COUNTS.items():
        if result.get(key) is not None:
            lines += [*_head(metric, help, "gauge"), f"{metric}{_labels(own)} {float(result[key])!r}"]
    lines += _head("edgewm_finding", "1 for each thing that stands out in the run.", "gauge")
    names = sorted({each["name"] for each in result.get("findings") or ()})
    lines += [f"edgewm_finding{_labels(own, name=name)} 1" for name in names]
    return "\n".join(lines) + "\n"


def write(result: Mapping[str, Any], file: Path) -> None:
    """Whole or not at all: a collector may read at any time. EdgewmError where it cannot be written."""
    check_writable(file)
    beside = file.with_name(f".{file.name}.part")
    try:
        beside.write_text(text(result), encoding="utf-8")
        beside.replace(file)
    except OSError as fault:
        beside.unlink(missing_ok=True)
        raise _not_written(file, fault) from fault


def check_writable(file: Path) -> None:
    """EdgewmError where the text cannot go; makes nothing."""
    try:
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        tempfile.TemporaryFile(dir=file.parent).close()  # `write` puts a file beside it
    except OSError as fault:
        raise _not_written(file, fault) from fault


def _not_written(file: Path, fault: OSError) -> EdgewmError:
    fix = "give --prometheus a file in a directory where it may write"
    return EdgewmError(f"cannot write Prometheus text: {fault.strerror}", str(file), fix)


def _head(metric: str, help: str, kind: str) -> list[str]:
    return [f"# HELP {metric} {help}", f"# TYPE {metric} {kind}"]


def _labels(own: Mapping[str, str], **more: str) -> str:
    escaped = {k: v.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for k, v in {**own, **more}.items()}
    return "{" + ",".join(f'{k}="{v}"' for k, v in escaped.items()) + "}"

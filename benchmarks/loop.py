"""What the runtime's two loops cost beside the kernels: `ewm_act`, and a plan with next to nothing in it.

    python benchmarks/loop.py [BUNDLE] [--rate-hz 1000] [--ticks 120000] [--threads N] [--json FILE] [--no-record]

Without BUNDLE the hand-made one of the tests: 32 regions in 10 rounds of a few dozen additions, so that its plan time
is overhead; its figures are appended to `benchmarks/results/<machine>.jsonl`, those of a BUNDLE are not. Each line is
one paced run that plans in every period, of two minutes. Quantiles are upper 95 % bounds, null where the samples do not
support one: `worth` is how many independent samples they amount to, as times that follow on each other are alike for as
long as the machine's clock stays what it is. `act_seen_p999_us` is the quantile of the samples themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from recording import add_flags, finish

from edgewm.clock import bound_ns, quantiles_ms, ranked_ns, sample_of
from edgewm.profile import run_tick

ACT_LIMIT_US = 5.0
WORTH_OF = 0.99  # the quantile that `worth` is told for


def measure(bundle: Path, rate_hz: float, ticks: int, threads: int, *flags: str) -> dict[str, object]:
    """One paced run: quantiles of `ewm_act` and of the plan in us, and futex calls for each plan."""
    report = run_tick(bundle, rate_hz, ticks, threads, "--replan", "free", *flags)
    withheld: dict = {}
    name = f"{report['mode']}, {threads} thread{'s'[: threads - 1]}{', spinning' if report['spin'] else ''}"
    row: dict[str, object] = {"table": "loop", "name": name}
    for what, key in (("act", "act_ns"), ("plan", "plan_ns")):
        found = quantiles_ms(sample_of(report[key]), withheld, what)
        row |= {f"{what}_{q}_us": None if v is None else round(v * 1e3, 2) for q, v in found.items()}
        row[f"{what}_worth"] = int(bound_ns(sample_of(report[key]), WORTH_OF).worth)
    act = sample_of(report["act_ns"])
    row["act_seen_p999_us"] = round(ranked_ns(act, -(-act.n * 999 // 1000)) / 1e3, 2)
    plans = report["plan_ns"]["count"]
    row["futex_calls_a_plan"] = round(report["stats"]["futex_calls"] / max(plans, 1), 3)
    row["held_up"] = report["stats"]["held_up"]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--rate-hz", type=float, default=1000.0)
    parser.add_argument("--ticks", type=int, default=120_000)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    add_flags(parser)
    args = parser.parse_args()
    bundle = args.bundle
    if bundle is None:
        import runtime_fixture

        bundle = runtime_fixture.bundle()
    else:
        args.record = False  # a table of the loop's own cost holds one program
    runs = [(1, ("--inline",)), (1, ()), (args.threads, ()), (args.threads, ("--spin",))]
    rows = [measure(bundle, args.rate_hz, args.ticks, threads, *flags) for threads, flags in runs]
    for row in rows:
        print(json.dumps(row))
    print(f"libedgewm.so {(bundle / 'libedgewm.so').stat().st_size} bytes")
    worst = max(row["act_seen_p999_us"] for row in rows)
    print(f"ewm_act p99.9 as seen at most {worst} us (limit {ACT_LIMIT_US})")
    command = f"python benchmarks/loop.py --rate-hz {args.rate_hz:g} --ticks {args.ticks}"
    finish([{**row, "command": command} for row in rows], args)


if __name__ == "__main__":
    main()

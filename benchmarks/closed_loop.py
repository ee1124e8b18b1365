"""Does a quantized bundle lose episodes? Pairs from the same starts on the same noise, until a margin is decided.

    python benchmarks/closed_loop.py [--precisions w8a8,w4a8] [--margin 0.03] [--episodes 3000] --log FILE

The fp32 bundle stands in for the full model, which it may while their plans are equal: before anything is played, both
plan from `--proven` contexts on the same noise, and the script ends where a first action differs by more than
`fidelity.FIRST_ACTION`, or an elite in more plans than `fidelity.SAME_ELITES` allows. Every bundle plays each start
once, so that all precisions are compared with the same episodes of fp32.

The test, its error rate and its sequential stop are the judge's (`statistics.noninferiority`), the starts are those of
`validate --seed`. A precision that is decided plays no more. Pairs needed are those that a test which looks once would
take at 80 % power for models that are equal and differ as often as was seen (`statistics.pairs_needed`). What a `--log`
already holds is not played again.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fidelity import FIRST_ACTION, SAME_ELITES, measure
from recording import add_flags, finish

from edgewm import statistics
from edgewm.act import period_of
from edgewm.binding import Runtime
from edgewm.build import build
from edgewm.judge import closed_loop as pairs
from edgewm.judge.loops import of_start
from edgewm.judge.sources import source_of
from edgewm.manifest import read_manifest
from edgewm.models import load

FULL = "fp32"
Episode = Callable[[int], int | None]
Known = Mapping[str, Mapping[str, int | None]]  # start -> precision -> periods to success, None without


def episodes_of(bundle: Path, make: Any, threads: int, open_: ExitStack) -> Episode:
    """What plays one episode of a bundle, by the seed of its start."""
    manifest, clock = read_manifest(bundle), [0]
    runtime = open_.enter_context(Runtime(bundle, threads, period_ns=period_of(manifest), clock=lambda: clock[0]))
    return lambda start: of_start(runtime, clock, manifest, make, start)


def played(
    players: Mapping[str, Episode], starts: list[int], margin: float, known: Known, keep: Callable[[dict], None]
) -> dict[str, list[pairs.Outcome]]:
    """Outcomes by precision, of each as far as it took to decide it."""
    found: dict[str, list[pairs.Outcome]] = {name: [] for name in players if name != FULL}
    open_ = set(found)
    for start in starts:
        row = dict(known.get(str(start), {}))
        asked = [name for name in (FULL, *sorted(open_)) if name not in row]
        row |= {name: players[name](start) for name in asked}
        if asked:
            keep({"start": start, **row})
        for name in sorted(open_):
            found[name].append((row[FULL], row[name]))
            if statistics.noninferiority(map(pairs.change, found[name]), margin).decision is not None:
                open_.discard(name)
        if not open_:
            break
    return found


def row_of(name: str, outcomes: list[pairs.Outcome], given: argparse.Namespace) -> dict[str, Any]:
    """Figures of one precision."""
    told = pairs.compared(outcomes)
    state = statistics.noninferiority(map(pairs.change, outcomes), given.margin)
    discordance = (told["only_full"] + told["only_compressed"]) / len(outcomes)
    verdict = {True: "excluded", False: "certain", None: "not decided"}[state.decision]
    low, high = told["difference_95"]
    return {
        "table": "closed-loop", "name": f"{given.model} {name}", "pairs": len(outcomes),
        "successes": told["compressed"]["successes"], f"successes of {FULL}": told["full"]["successes"],
        "only fp32": told["only_full"], "only this": told["only_compressed"],
        "difference points": f"{100 * low:+.1f} to {100 * high:+.1f}", "mcnemar p": told["mcnemar_p"],
        f"a loss of {100 * given.margin:g} points": verdict, "discordance": discordance,
        "pairs needed": math.ceil(statistics.pairs_needed(discordance, given.margin)),
        "command": f"python benchmarks/closed_loop.py --model {given.model} --precisions {given.precisions}"
                   f" --margin {given.margin:g} --episodes {given.episodes}",
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reference")
    parser.add_argument("--precisions", default="w8a8,w4a8")
    parser.add_argument("--margin", type=float, default=0.03, help="of successes, per episode")
    parser.add_argument("--episodes", type=int, default=3000, help="pairs at most")
    parser.add_argument("--proven", type=int, default=10, help="contexts in which fp32 and the full model both plan")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--log", type=Path, help="episodes as they come; a run goes on from there")
    add_flags(parser)
    given = parser.parse_args()
    proof = measure(given.model, given.proven)
    print(proof, file=sys.stderr, flush=True)
    same = proof["plans_with_identical_elites"] / given.proven
    if same < SAME_ELITES or proof["first_action_error"] > FIRST_ACTION:
        raise SystemExit("the fp32 bundle's plans are not the full model's")
    lines = given.log.read_text().splitlines() if given.log and given.log.is_file() else []
    known = {str(row.pop("start")): row for row in map(json.loads, lines)}

    def keep(row: dict[str, Any]) -> None:
        if given.log is not None:
            with given.log.open("a") as out:
                out.write(json.dumps(row) + "\n")

    make, starts = source_of(given.model, load(given.model)).make, pairs.starts_of(given.episodes, 0)
    with tempfile.TemporaryDirectory(prefix="edgewm-") as folder, ExitStack() as open_:
        players = {}
        for name in (FULL, *given.precisions.split(",")):
            build(given.model, precision=name, out=Path(folder) / name, threads=given.threads)
            players[name] = episodes_of(Path(folder) / name, make, given.threads, open_)
        outcomes = played(players, starts, given.margin, known, keep)
    rows = [row_of(name, found, given) for name, found in outcomes.items()]
    for row in rows:
        print({key: value for key, value in row.items() if key not in ("table", "command")}, flush=True)
    finish(rows, given)
    return 0


if __name__ == "__main__":
    sys.exit(main())

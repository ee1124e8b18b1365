"""Trials that processes and machines share, each done by one of them: a study of Optuna's, in a journal that all see.

There is nothing to sample: what may be tried is a list, and each entry is queued once. The journal's order decides who
takes what, so nothing is done twice; a worker whose trial beats no more is dead, and the trial is taken up again.
(Optuna's queue in SQLite can hand one trial to two processes: it reads and takes in two statements.)
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import EdgewmError

NAME = "edgewm distill"
ATTEMPTS = 3  # after so many workers that died on it where it stands, an entry is given up
PATIENCE_S = 10.0  # with a study that does not say yet what it is of
Figures = dict[str, Any]


@dataclass
class Study:
    """`entries` to try, in order of preference. `beat_s`: how often a trial says that it is alive; `grace_s`: after how
    long without it it is dead, by the clock of whoever looks."""

    optuna: Any
    of: Any
    entries: list[dict[str, Any]]
    beat_s: float = 10.0
    grace_s: float = 120.0
    seen: dict[int, tuple[int, float]] = field(default_factory=dict)


def open_study(
    file: Path, asked: Mapping[str, Any], entries: Callable[[], list[dict[str, Any]]] | None, **clock: float
) -> Study:
    """The study in a journal: begun with `entries()` where there is none, which are not asked for where there is one.

    EdgewmError without Optuna, where the study in the journal was asked for something else, and, where `entries` is
    None, where there is none to join.
    """
    optuna = _optuna()
    begun = _load(optuna, file)
    if begun is None:
        if entries is None:
            raise EdgewmError("there is no study to join", str(file), "begin it: the same command without --join")
        told = {"asked": asked, "entries": entries()}
        file.parent.mkdir(parents=True, exist_ok=True)
        storage = _storage(optuna, file)
        try:
            made = optuna.create_study(storage=storage, study_name=NAME, direction="maximize")
            for i in range(len(told["entries"])):
                _queue(made, told["entries"], i)
        except optuna.exceptions.DuplicatedStudyError:  # another process began it meanwhile, or died doing so
            made = None if _load(optuna, file) else optuna.load_study(study_name=NAME, storage=storage)
        if made is not None:
            made.set_user_attr("told", told)
        begun = _load(optuna, file)
    told = json.loads(json.dumps(begun.user_attrs["told"]))
    for key, value in json.loads(json.dumps(asked)).items():
        if told["asked"].get(key) != value:
            raise EdgewmError(
                f"the study was asked for {key} {told['asked'].get(key)!r}, this run for {value!r}", str(file),
                "give the options that it was begun with, or --study another file",
            )  # fmt: skip
    return Study(optuna, begun, told["entries"], **clock)


def is_begun(file: Path) -> bool:
    """Whether a journal holds a study that may go on."""
    return file.is_file() and _load(_optuna(), file) is not None


def run(
    study: Study, judge: Callable[[int], Figures], say: Callable[[int], None] = lambda left: None,
    stands: Callable[[int], Any] = lambda entry: None,
) -> None:  # fmt: skip
    """Take trials until every entry has been tried, here or elsewhere. `judge(entry)` gives figures, `value` among
    them, the more the better, where the entry has any. `say` is told how many entries are left; `stands(entry)` says
    how far it has come here, so that workers that died further on are not counted together."""
    states = study.optuna.trial.TrialState
    while (trial := _take(study, say)) is not None:
        entry = trial.user_attrs["entry"]
        trial.set_user_attr("stands", stands(entry))
        try:
            with _alive(study, trial):
                figures = judge(entry)
        except BaseException as fault:
            how = states.PRUNED if _is_interruption(fault) else states.FAIL
            study.of.tell(trial, state=how, skip_if_finished=True)
            raise
        with contextlib.suppress(study.optuna.exceptions.UpdateFinishedTrialError):  # taken for dead: another did it
            trial.set_user_attr("figures", figures)
            study.of.tell(trial, figures.get("value"), state=None if "value" in figures else states.PRUNED)


def _is_interruption(fault: BaseException) -> bool:
    """Whether the entry has no part in it: somebody stopped the process, or its disk is full."""
    return any(isinstance(x, (KeyboardInterrupt, SystemExit, OSError)) for x in (fault, fault.__cause__))


def figures_of(study: Study) -> list[Figures | None]:
    """Of each entry, None for one that was given up."""
    found: list[Figures | None] = [None] * len(study.entries)
    for trial in _trials(study):
        if _is_done(trial):
            found[trial.user_attrs["entry"]] = trial.user_attrs["figures"]
    return found


# ------------------------------------------------------------------------------------------------------- the queue


def _take(study: Study, say: Callable[[int], None]) -> Any:
    """The next trial, this process's own; None when all are done. Waits for those that others are at."""
    states = study.optuna.trial.TrialState
    while True:
        _bury(study)
        by_entry: dict[int, list[Any]] = {i: [] for i in range(len(study.entries))}
        for trial in _trials(study):
            by_entry[trial.user_attrs["entry"]].append(trial)
        left = [i for i, found in by_entry.items() if not any(map(_is_done, found)) and _died(study, found) < ATTEMPTS]
        say(len(left))
        if not left:
            return None
        for i in left:
            if not {states.WAITING, states.RUNNING} & {trial.state for trial in by_entry[i]}:
                _queue(study.of, study.entries, i)
        if not any(trial.state == states.WAITING for trial in _trials(study)):
            time.sleep(study.beat_s / 10)
            continue
        trial = study.of.ask()
        if "entry" in trial.user_attrs and not _is_twin(study, trial):
            return trial
        study.of.tell(trial, state=states.PRUNED)  # the queue ran empty meanwhile, or two queued one entry


def _is_done(trial: Any) -> bool:
    return trial.state.is_finished() and "figures" in trial.user_attrs


def _died(study: Study, trials: list[Any]) -> int:
    """How many workers died on an entry without bringing it further."""
    failed = [t for t in trials if t.state == study.optuna.trial.TrialState.FAIL]
    return max(Counter(json.dumps(t.user_attrs.get("stands")) for t in failed).values(), default=0)


def _queue(of: Any, entries: list[dict[str, Any]], i: int) -> None:
    of.enqueue_trial({}, user_attrs={"entry": i, "name": entries[i].get("name", "")})


def _is_twin(study: Study, trial: Any) -> bool:
    """Whether the entry was queued twice at once, and this is not the first of both."""
    states = study.optuna.trial.TrialState
    twins = [t for t in _trials(study) if t.user_attrs["entry"] == trial.user_attrs["entry"]]
    at_work = (states.WAITING, states.RUNNING)
    return any(_is_done(t) or (t.state in at_work and t.number < trial.number) for t in twins)


def _bury(study: Study) -> None:
    """Mark as failed what has not beaten for too long."""
    for trial in _trials(study):
        if trial.state == study.optuna.trial.TrialState.RUNNING:
            beats, before = trial.user_attrs.get("beats", 0), study.seen.get(trial.number)
            if before is None or before[0] != beats:
                study.seen[trial.number] = (beats, time.monotonic())
            elif time.monotonic() - before[1] > study.grace_s:
                study.of.tell(trial.number, state=study.optuna.trial.TrialState.FAIL, skip_if_finished=True)


@contextlib.contextmanager
def _alive(study: Study, trial: Any) -> Iterator[None]:
    """Within, the trial beats."""
    is_over = threading.Event()

    def beat() -> None:
        beats = 0
        with contextlib.suppress(study.optuna.exceptions.UpdateFinishedTrialError):
            while not is_over.wait(study.beat_s):
                trial.set_user_attr("beats", beats := beats + 1)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _trials(study: Study) -> list[Any]:
    return [t for t in study.of.get_trials(deepcopy=False) if "entry" in t.user_attrs]


# ------------------------------------------------------------------------------------------------------- the journal


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as fault:
        raise EdgewmError("optuna is missing", "--trials", "pip install 'edgewm[distill]'") from fault
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _storage(optuna: Any, file: Path) -> Any:
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(file)))


def _load(optuna: Any, file: Path) -> Any:
    """The study in a journal; None where it holds none, or one whose beginner died before it said what it is of, which
    it does at once."""
    until = time.monotonic() + PATIENCE_S
    try:
        if not file.is_file() or NAME not in optuna.get_all_study_names(storage := _storage(optuna, file)):
            return None
        found = optuna.load_study(study_name=NAME, storage=storage)
        while "told" not in found.user_attrs:
            if time.monotonic() > until:
                return None
            time.sleep(0.05)
    except (ValueError, KeyError) as fault:
        raise EdgewmError(f"the study is damaged: {fault}", str(file), "give --study another file") from fault
    return found

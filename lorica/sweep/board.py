"""What is to be done in a sweep, what is done, and who is at what.

Every method has a study of Optuna's for each stage: its search, the best of it on more tasks, and its rows of the
table. A worker that asks for something to do gets the next trial. Two things make that hold whatever is killed, and
when:

- One lock of the operating system for all that is decided and written, which goes with its process. Optuna's journal is
  written under it too, and what a killed process left of a line is cut off before the next one.
- One such lock for each trial, which its worker holds until the trial has ended. So a trial that is running, and whose
  lock is free, is nobody's: the next worker goes on with it, in the same folder, from its checkpoint.

What a trial tries does not depend on who asks: it follows from the file, or is drawn by a seed and the trial's number;
with TPE and pruning it also follows from which trials had ended by then.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal, cast

import optuna
from filelock import FileLock, Timeout
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import create_engine, inspect, make_url
from sqlalchemy.exc import SQLAlchemyError

from lorica.config import Recipe
from lorica.errors import LoricaError
from lorica.files import refusals
from lorica.metrics import Matrix, whole
from lorica.sweep.plan import Method, Plan, Search, Settings, Space, facts, rounded, said, slug

Stage = Literal["search", "final", "rows"]

_SEEDS = {"seed": Space(low=0, high=2**53)}
_MOST = 1e300
_ENOUGH = 5  # trials that have ended, before others are measured by them


@dataclass(frozen=True)
class Claim:
    """A trial that this process, and no other, is to run.

    Attributes:
        settings: what is tried; of a row, its seed.
    """

    board: Board
    method: Method
    stage: Stage
    trial: Trial
    settings: Settings
    lock: FileLock

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.method.name}, {said(self.settings, short=True)}"

    @property
    def recipe(self) -> Recipe:
        plan = self.board.plan
        if self.stage == "rows":
            return plan.row(self.method, self.board.settings_of(self.method) or {}, self.settings["seed"])
        return plan.searched(self.method, self.settings)

    @property
    def folder(self) -> Path:
        plan = self.board.plan
        if self.stage == "rows":
            return plan.row_folder(self.method, self.settings["seed"])
        number = self.trial.number
        if self.stage == "final":  # where the search has left it
            trials = self.board.trials(self.method, "search")
            number = next(each.number for each in trials if each.params == self.settings)
        return plan.search_folder(self.method, self.settings, number)

    @property
    def tasks(self) -> int | None:
        """How many it learns; None for all."""
        search = self.method.search
        if self.stage == "rows" or search is None:
            return None
        return search.tasks if self.stage == "search" else search.final_tasks

    def goes_on(self, accuracy: Matrix) -> bool:
        """Notes the mean accuracy after each task; whether to go on after that."""
        with self.board.alone:
            noted = self.board.trials(self.method, self.stage)[self.trial.number].intermediate_values
            for task in whole(accuracy):
                if task + 1 not in noted:
                    self.trial.report(fmean(cast(list[float], accuracy[task])), task + 1)
            return not self.trial.should_prune()

    def require_same(self, identity: Mapping[str, str]) -> None:
        """Notes what a trial of a search was measured on.

        Args:
            identity: digests of data and weights, as in metrics.json.

        Raises:
            LoricaError: it is not what an earlier trial was measured on, and their scores say nothing to each other.
        """
        with self.board.alone:
            for each in (*self.board.trials(self.method, "search"), *self.board.trials(self.method, "final")):
                before = each.user_attrs.get("identity", identity)
                if changed := [key for key in identity if before.get(key) != identity[key]]:
                    raise LoricaError(
                        f"{self.title}: {' and '.join(changed)} of other contents than when "
                        f"{said(dict(each.params), short=True)} was tried, and one search compares them; restore what "
                        "was there, or give the sweep another folder"
                    )
            self.trial.set_user_attr("identity", dict(identity))

    def end(self, score: float | None, state: TrialState = TrialState.COMPLETE, why: str | None = None) -> None:
        """Notes how it ended, and gives it back.

        Args:
            why: what kept it from ending well.
        """
        with self.board.alone:
            if why:
                self.trial.set_user_attr("why", why)
            self.trial.study.tell(self.trial, score, state)
            self._clear()

    def give_back(self) -> None:
        """Leaves it to the next worker, where it has not ended."""
        self.lock.release()

    def _clear(self) -> None:
        with suppress(OSError):
            Path(self.lock.lock_file).unlink(missing_ok=True)
        self.lock.release()


class Board:
    """All trials of a sweep."""

    def __init__(self, plan: Plan, *, look: bool = False) -> None:
        """Opens what there is, or begins it.

        Args:
            look: change nothing.

        Raises:
            LoricaError: a search or rows that began with other settings; a folder or a database that cannot be used.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.plan = plan
        self.alone = FileLock(plan.folder / ".lorica.sweep.lock")
        if look:
            self._storage = self._opened(look=True)
            return
        if plan.sweep.storage:  # a database that cannot be opened is refused before there is a folder
            self._opened(look=True)
        with refusals(plan.folder):
            (plan.folder / ".claims").mkdir(parents=True, exist_ok=True)
            with self.alone:
                self._storage = self._opened(look=False)
                self._require_same()

    # --- what there is ---

    def trials(self, method: Method, stage: Stage) -> list[FrozenTrial]:
        """The trials of a method at a stage, in the order in which they were begun; none where it has none yet."""
        try:
            return self._load(method, stage).get_trials(deepcopy=False)
        except KeyError:
            return []

    def scores(self, method: Method, stage: Stage) -> list[tuple[Settings, float]]:
        """What was tried to its end, and how it scored; 0 where a loss was not finite."""
        ended = (each for each in self.trials(method, stage) if each.state is TrialState.COMPLETE)
        return [(dict(each.params), cast(float, each.value)) for each in ended]

    def settings_of(self, method: Method) -> Settings | None:
        """What a method's rows run with; None as long as that is not chosen."""
        if method.search is None:
            if method.heir_of is None:
                return method.settings
            chosen = self.settings_of(next(each for each in self.plan.methods if each.name == method.heir_of))
            return chosen and {key: value for key, value in chosen.items() if key not in method.own}
        if not self._has_ended(method, "search"):
            return None
        if method.search.final_tasks is None:
            return _best(self.scores(method, "search"))
        return _best(self.scores(method, "final")) if self._has_ended(method, "final") else None

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do, for anybody."""
        return all(self.settings_of(method) is not None and self._has_rows(method) for method in self.plan.methods)

    def count(self) -> tuple[int, int]:
        """How many trials have ended, and how many there are to be, as far as that is known."""
        done = total = 0
        for method in self.plan.methods:
            stages: dict[Stage, int] = {"rows": len(self.plan.sweep.seeds)}
            if search := method.search:
                stages["search"] = search.trials or len(method.points)
                stages["final"] = min(search.finalists, stages["search"]) if search.final_tasks else 0
            for stage, expected in stages.items():
                trials = self.trials(method, stage)
                done += sum(each.state.is_finished() for each in trials)
                total += max(expected, len(trials))
        return done, total

    # --- what is next ---

    def claim(self) -> Claim | None:
        """The next trial; None where there is none to be had now."""
        with self.alone:
            for stage in ("search", "final"):
                for method in filter(lambda each: each.search, self.plan.methods):
                    if claim := self._next(method, stage, self.trials(method, stage), self._wanted(method, stage)):
                        return claim
            ready = [each for each in self.plan.methods if self.settings_of(each) is not None]
            for seed in self.plan.sweep.seeds:  # seed by seed, so that an unfinished table is a fair one
                for method in ready:
                    trials = [each for each in self.trials(method, "rows") if each.params.get("seed", seed) == seed]
                    if claim := self._next(method, "rows", trials, None if trials else {"seed": seed}):
                        return claim
        return None

    def _next(
        self, method: Method, stage: Stage, trials: Sequence[FrozenTrial], wanted: Settings | None
    ) -> Claim | None:
        """One of the trials that has lost its worker, else a new one that tries what is `wanted`."""
        for each in trials:
            if not each.state.is_finished() and (lock := self._lock(method, stage, each.number)):
                study = self._begun(method, stage, each.number)
                # where its process was killed before the trial began, it is the one that Optuna gives next
                trial = study.ask() if each.state is TrialState.WAITING else Trial(study, each._trial_id)
                return self._claimed(method, stage, trial, lock)
        if wanted is None:
            return None
        study = self._begun(method, stage)
        number = len(study.get_trials(deepcopy=False))
        study.sampler = _sampler(method.search, number)
        if wanted:
            study.enqueue_trial(wanted)
        lock = self._lock(method, stage, number)
        assert lock is not None  # nobody else makes trials while this process is alone
        return self._claimed(method, stage, study.ask(), lock)

    def _claimed(self, method: Method, stage: Stage, trial: Trial, lock: FileLock) -> Claim:
        """The settings of a trial are those that it has, that were meant for it, or that are drawn now."""
        space = method.search.space if method.search and stage != "rows" else _SEEDS
        return Claim(
            self, method, stage, trial, {key: _suggested(trial, key, each) for key, each in space.items()}, lock
        )

    def _wanted(self, method: Method, stage: Stage) -> Settings | None:
        """What the next new trial of a search tries: {} for what is drawn, None where no other is to be had now."""
        trials, search = self.trials(method, stage), cast(Search, method.search)
        if stage == "final":
            if search.final_tasks is None or not self._has_ended(method, "search"):
                return None
            ranked: list[Settings] = []
            for settings, _ in sorted(self.scores(method, "search"), key=lambda each: -each[1]):
                if settings not in ranked:  # what is drawn may be drawn twice
                    ranked.append(settings)
            return next(iter(ranked[: search.finalists][len(trials) :]), None)
        if search.draws:
            return {} if len(trials) < cast(int, search.trials) else None
        if len(trials) < len(method.points):
            return method.points[len(trials)]
        return self._beyond(search, trials) if search.by == "factors" else None

    def _beyond(self, search: Search, trials: Sequence[FrozenTrial]) -> Settings | None:
        """The next value, where all have been tried and the best one lies at an end."""
        ((key, space),) = search.space.items()
        if space.beyond is None or not all(each.state.is_finished() for each in trials):
            return None
        tried = {each.params[key]: each.value if each.state is TrialState.COMPLETE else -1.0 for each in trials}
        best = max(tried, key=lambda value: cast(float, tried[value]))
        if cast(float, tried[best]) <= 0 or min(tried) < best < max(tried):
            return None
        return {key: rounded(best / space.beyond if best == min(tried) else best * space.beyond)}

    def _has_ended(self, method: Method, stage: Stage) -> bool:
        trials = self.trials(method, stage)
        return self._wanted(method, stage) is None and all(each.state.is_finished() for each in trials)

    def _has_rows(self, method: Method) -> bool:
        ended = {each.params["seed"] for each in self.trials(method, "rows") if each.state.is_finished()}
        return ended >= set(self.plan.sweep.seeds)

    # --- Optuna's part ---

    def _opened(self, *, look: bool) -> BaseStorage:
        url, journal = self.plan.sweep.storage, self.plan.folder / "journal.log"
        if url is None:
            if look and not journal.exists():
                return InMemoryStorage()
            try:
                with refusals(self.plan.folder):
                    return JournalStorage(JournalFileBackend(str(journal), cast(Any, _Whole(journal, self.alone))))
            # of lines that Optuna did not write
            except (ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
                raise LoricaError(
                    f"{journal}: not the journal of a sweep, or damaged ({str(error)[:200]}); restore it, or give the "
                    "sweep another folder"
                ) from error
        try:
            if look and not _has_tables(url):  # which would be made
                return InMemoryStorage()
            return RDBStorage(url)
        except ImportError as error:
            raise LoricaError(
                f"storage: the driver of this database is not installed ({str(error)[:200]}); pip install it, or name "
                "another in the URL, as in postgresql+psycopg2://…"
            ) from error
        except (SQLAlchemyError, ValueError, optuna.exceptions.OptunaError) as error:
            told = " ".join(str(error).split())
            raise LoricaError(
                f"storage: the database cannot be opened ({told:.300}); expected a URL as of SQLAlchemy"
            ) from error

    def _title(self, method: Method, stage: Stage) -> str:
        return f"{self.plan.name}: {method.name}: {stage}"

    def _load(self, method: Method, stage: Stage, number: int = 0) -> Study:
        """Raises KeyError where it has not begun."""
        search = method.search if stage == "search" else None
        return optuna.load_study(
            study_name=self._title(method, stage),
            storage=self._storage,
            sampler=_sampler(search, number),
            pruner=Hopeless() if search and search.prune else optuna.pruners.NopPruner(),
        )

    def _begun(self, method: Method, stage: Stage, number: int = 0) -> Study:
        with suppress(KeyError):
            return self._load(method, stage, number)
        study = optuna.create_study(
            study_name=self._title(method, stage), storage=self._storage, direction="maximize", sampler=RandomSampler(0)
        )
        study.set_user_attr("facts", self._facts(method, stage))
        return self._load(method, stage, number)

    def _facts(self, method: Method, stage: Stage) -> dict[str, Any]:
        """What all trials of a stage have in common, as JSON has it."""
        if stage == "rows":
            said_of = facts(self.plan.row(method, self.settings_of(method) or {}, 0))
        else:
            search = cast(Search, method.search)
            recipe = {
                key: each for key, each in facts(self.plan.searched(method, {})).items() if key not in search.space
            }
            said_of = recipe | {f"search.{key}": each for key, each in search.model_dump(mode="json").items()}
        return json.loads(json.dumps(said_of))

    def _require_same(self) -> None:
        problems = []
        for method in self.plan.methods:
            for stage in ("search", "final", "rows"):
                try:
                    study = self._load(method, stage)
                except KeyError:
                    continue
                if stage != "rows" and method.search is None:
                    continue
                now = self._facts(method, stage)
                if "facts" not in study.user_attrs:  # its process was killed just then
                    study.set_user_attr("facts", now)
                before = study.user_attrs["facts"]
                what = "the rows" if stage == "rows" else "the search"
                problems += [
                    f"{method.name}: {what} began with {key}={before[key]!r}, now {now.get(key)!r}; give the same "
                    "value, give the method another name, or the sweep another folder"
                    for key in before
                    if before[key] != now.get(key)
                ]
        if problems:
            raise LoricaError(list(dict.fromkeys(problems)))

    def _lock(self, method: Method, stage: Stage, number: int) -> FileLock | None:
        """The lock of a trial; None where a worker has it."""
        lock = FileLock(self.plan.folder / ".claims" / f"{slug(method.name)}-{stage}-{number}", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return None
        return lock


class Hopeless(BasePruner):
    """Gives up a trial whose accuracy after its newest task is below the median there of those that ended.

    Optuna's own median pruner goes by the best value of a trial so far, and accuracy falls as tasks add up: that would
    be the first task's, whatever came after.
    """

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        task = trial.last_step
        if task is None:
            return False
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        others = [each.intermediate_values[task] for each in ended if task in each.intermediate_values]
        return len(others) >= _ENOUGH and trial.intermediate_values[task] < median(others)


class _Whole:
    """The lock of a journal, in the form that Optuna wants, whose lines are whole once it is held."""

    def __init__(self, journal: Path, lock: FileLock) -> None:
        self._journal, self._lock = journal, lock

    def acquire(self) -> bool:
        self._lock.acquire()
        with self._journal.open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            if size and file.read() != b"\n":
                file.truncate(self._journal.read_bytes().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        self._lock.release()


def _has_tables(url: str) -> bool:
    """Whether a database has what Optuna keeps, without making anything there."""
    place = make_url(url)
    if place.get_backend_name() == "sqlite" and place.database and not Path(place.database).exists():
        return False  # to open it would make the file
    return inspect(create_engine(place)).has_table("studies")


def _sampler(search: Search | None, number: int) -> BaseSampler:
    """What draws the trial of that number."""
    seed = search.seed + number if search else 0
    return TPESampler(seed=seed) if search and search.by == "tpe" else RandomSampler(seed)


def _suggested(trial: Trial, key: str, space: Space) -> Any:
    if space.values is not None:
        return trial.suggest_categorical(key, space.values)
    if space.factors is not None:
        return trial.suggest_float(key, 0, _MOST)  # all are given
    low, high = cast(float, space.low), cast(float, space.high)
    if space.is_whole:
        return trial.suggest_int(key, int(low), int(high), log=space.log)
    return trial.suggest_float(key, low, high, log=space.log)


def _best(scores: Sequence[tuple[Settings, float]]) -> Settings:
    """The first of the best."""
    return max(scores, key=lambda each: each[1])[0]

"""How commands and searches grow with the trials of a study and with the studies of a database.

    python benchmarks/load.py            100, 1,000 and 10,000 trials; 2, 20 and 200 studies (some minutes)
    python benchmarks/load.py --fast     100 and 1,000 trials; 2 and 20 studies

The studies are of a model of 32 layers, filled in bulk (`load_filler.py`). Commands run as a person runs them; what
they take beyond the same command on a study of 20 trials, or on one study, is the median over interleaved rounds. A
search is one that goes on with such a study, on an engine that answers at once (`simulated_engine.py`): `ask_s` is one
call that finds a plan, `between_trials_s` all that lies between two trials: store, tell, learn, report, ask. The
processes' own time stands beside it, which other programs add little to. One line of JSON on stdout, tables on stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import results
from load_filler import Filled, PlanMaker, grown, read_filled, same_rows, write_filled
from search_studies import empty_database, settings_for, study_store
from simulated_engine import Errors, SimulatedEngine
from simulated_truth import Recording, Truth, menus_of

from actune.cli.console import TextConsole
from actune.cli.progress import show_progress
from actune.config import load_space, space_for
from actune.cost.outlook import Outlook
from actune.records import LoadTarget
from actune.search import SilentReporter, run_search
from actune.search.agenda import Agenda
from actune.search.forecast import DERIVED_SETS, prediction_record
from actune.search.space import ModelSpace
from actune.search.study import PlanStudy
from actune.statistics import clock_of
from actune.store import Store

TARGET, DEVICE, BUDGET = "dense-tiny?layers=32", "sim:tiny", "60%"
BASE_TRIALS = 20
TRIALS, FAST_TRIALS = (100, 1_000, 10_000), (100, 1_000)
STUDIES, FAST_STUDIES = (2, 20, 200), (2, 20)
TRIALS_OF_MANY_STUDIES = 100
SAMPLERS = {"thompson": "thompson", "tpe": "tpe", "random": "tpe"}
"""And the sampler whose study it goes on with: both draw the same parameters."""
MORE_TRIALS = 8
ROUNDS = 3

STUDY_COMMANDS = {
    "show": ["show", "s"],
    "show --json": ["show", "s", "--json"],
    "export": ["export", "s"],
    "export --trial": ["export", "s", "--trial", "15"],
    "frontier": ["frontier", "s"],
    "frontier --json": ["frontier", "s", "--json"],
}
DATABASE_COMMANDS = {"studies": ["studies"], "studies --json": ["studies", "--json"], "show": ["show", "s0"]}


@dataclass(frozen=True, slots=True)
class Bench:
    """All that studies are made of."""

    recording: Recording
    truth: Truth
    empty: Path
    folder: Path

    def engine(self) -> SimulatedEngine:
        return SimulatedEngine(self.recording, self.truth, Errors(seed=0), with_save_sets=True)

    def filled(self, sampler: str, trials: int) -> Filled:
        """A short search, checked to be written in bulk as it wrote itself, and so many trials more."""
        space = load_space(space_for(self.truth.structure))
        settings = settings_for(
            TARGET,
            DEVICE,
            budget=BUDGET,
            space=space.name,
            space_yaml=space.yaml_text,
            trials=BASE_TRIALS,
            sampler=sampler,
            seed=0,
        )
        settings = replace(settings, tolerance=0.0)  # goes on for as long as there are trials
        engine = self.engine()
        with study_store(self.empty) as (store, folder):
            run_search(
                store, "s", settings, log_folder=folder, reporter=SilentReporter(), engine_factory=engine.factory
            )
            short = read_filled(store, "s")
            with study_store(self.empty) as (other, _):
                write_filled(other, "s", short)
                differing = same_rows(store, other)
        assert not differing, f"written in bulk, {differing} differ from what a search writes"
        menus = menus_of(self.recording, ModelSpace(space, self.truth.structure), save_sets=DERIVED_SETS)
        outlook = Outlook(self.truth.structure, engine.profile)
        outlook.stack("off", menus)
        maker = PlanMaker(menus, [plan.plan_hash for plan in (*short.trials, *short.predictions)], seed=0)
        return grown(
            short,
            maker.plans(trials - len(short.trials)),
            engine,
            lambda plan: prediction_record(plan, outlook.predict(plan)),
            clock_of(self.recording.load().environment),
            with_parameters=sampler != "thompson",
        )

    def database(self, name: str, filled: Filled, studies: Sequence[str] = ("s",)) -> Path:
        """A file with the study under each of the names."""
        path = self.folder / f"{name}.db"
        shutil.copy(self.empty, path)
        with Store.open(f"sqlite:///{path}", create=True) as store:
            for study in studies:
                write_filled(store, study, filled)
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        return path


def timed_commands(commands: dict[str, list[str]], base: Path, databases: dict[int, Path]) -> dict[str, Any]:
    """By command: seconds on the small database, and beyond them on each of the others."""
    found: dict[str, Any] = {}
    for name, arguments in commands.items():
        taken = [
            {size: _taken(arguments, path) for size, path in {0: base, **databases}.items()} for _ in range(ROUNDS)
        ]

        def beyond(number: int, taken: list[dict[int, tuple[float, float]]] = taken) -> dict[int, float]:
            return {
                size: round(statistics.median(of[size][number] - of[0][number] for of in taken), 3)
                for size in databases
            }

        found[name] = {
            "start_up_s": round(statistics.median(of[0][0] for of in taken), 3),
            "beyond_s": beyond(0),
            "beyond_process_s": beyond(1),
        }
        print(f"{name:<16} {found[name]}", file=sys.stderr, flush=True)
    return found


def _taken(arguments: Sequence[str], database: Path) -> tuple[float, float]:
    """Seconds on the wall, and of the process itself."""
    command = [sys.executable, "-m", "actune", *arguments, "--storage", f"sqlite:///{database}"]
    start_s, before = time.perf_counter(), os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end_s, after = time.perf_counter(), os.times()
    return end_s - start_s, sum(after[2:4]) - sum(before[2:4])


def timed_search(bench: Bench, database: Path, sampler: str, trials: int) -> dict[str, Any]:
    """A search that goes on with a study for a few trials more."""
    engine = bench.engine()
    with tempfile.TemporaryDirectory() as text, _noted() as calls:
        shutil.copy(database, Path(text) / "actune.db")
        opening_s = time.perf_counter()
        with Store.open(f"sqlite:///{text}/actune.db", create=True) as store, _shown() as reporter:
            opened_s = time.perf_counter() - opening_s
            settings = replace(store.study("s").settings, trials=trials + MORE_TRIALS, sampler=sampler)
            store.update_settings("s", settings)
            start_s, start_busy_s = time.perf_counter(), engine.busy_s
            run_search(store, "s", settings, log_folder=Path(text), reporter=reporter, engine_factory=engine.factory)
    first_s = engine.trial_starts_s[0]
    gaps = zip(engine.trial_ends_s, engine.trial_starts_s[1:], strict=False)
    asks = [(wall_s, process_s) for at_s, wall_s, process_s in calls if at_s > first_s]
    return {
        "open_s": round(opened_s, 3),
        "resume_s": round(first_s - start_s - start_busy_s, 2),
        "ask_s": round(statistics.median(wall_s for wall_s, _ in asks), 3),
        "ask_process_s": round(statistics.median(process_s for _, process_s in asks), 3),
        "max_ask_process_s": round(max(process_s for _, process_s in asks), 3),
        "between_trials_s": round(statistics.median(next_s - end_s for end_s, next_s in gaps), 3),
    }


@contextmanager
def _shown() -> Iterator[Any]:
    """The command line's own progress, written to nowhere."""
    with (
        open(os.devnull, "w") as nowhere,
        patch("actune.cli.progress.TextConsole", lambda **_: TextConsole(file=nowhere)),
        show_progress("s") as reporter,
    ):
        yield reporter


@contextmanager
def _noted() -> Iterator[list[tuple[float, float, float]]]:
    """When each search for a plan began, and how long it took on the wall and in this process: prepare, then ask."""
    calls: list[tuple[float, float, float]] = []
    prepare, ask = Agenda.prepare, PlanStudy.ask
    pending: list[tuple[float, float, float]] = []

    @wraps(prepare)
    def noted_prepare(*args: Any, **kwargs: Any) -> Any:
        start_s, start_process_s = time.perf_counter(), time.process_time()
        found = prepare(*args, **kwargs)
        pending[:] = [(start_s, time.perf_counter() - start_s, time.process_time() - start_process_s)]
        return found

    @wraps(ask)
    def noted_ask(*args: Any, **kwargs: Any) -> Any:
        start_s, start_process_s = time.perf_counter(), time.process_time()
        found = ask(*args, **kwargs)
        at_s, wall_s, process_s = pending.pop()
        calls.append((at_s, wall_s + time.perf_counter() - start_s, process_s + time.process_time() - start_process_s))
        return found

    with patch.object(Agenda, "prepare", noted_prepare), patch.object(PlanStudy, "ask", noted_ask):
        yield calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="up to 1,000 trials and 20 studies")
    parser.add_argument("--save", action="store_true", help="write results/load.json")
    arguments = parser.parse_args()
    sizes, studies = (FAST_TRIALS, FAST_STUDIES) if arguments.fast else (TRIALS, STUDIES)
    document: dict[str, Any] = {"benchmark": "load", "fast": arguments.fast, "rounds": ROUNDS, "searches": {}}
    with (
        tempfile.TemporaryDirectory() as text,
        Recording(LoadTarget(TARGET, DEVICE, seed=0)) as recording,
    ):
        folder = Path(text)
        bench = Bench(recording, Truth(recording), empty_database(folder), folder)
        filled = {sampler: bench.filled(sampler, max(sizes)) for sampler in ("thompson", "tpe")}
        databases = {
            sampler: {size: bench.database(f"{sampler}-{size}", of.first(size)) for size in (BASE_TRIALS, *sizes)}
            for sampler, of in filled.items()
        }
        base = databases["thompson"].pop(BASE_TRIALS)
        document["trials"] = timed_commands(STUDY_COMMANDS, base, databases["thompson"])
        of_many = filled["thompson"].first(TRIALS_OF_MANY_STUDIES)
        many = {n: bench.database(f"studies-{n}", of_many, [f"s{i}" for i in range(n)]) for n in (1, *studies)}
        document["studies"] = timed_commands(DATABASE_COMMANDS, many.pop(1), many)
        for sampler, of_sampler in SAMPLERS.items():
            document["searches"][sampler] = {}
            for size in sizes:
                row = timed_search(bench, databases[of_sampler][size], sampler, size)
                document["searches"][sampler][size] = row
                print(f"{sampler:<9} {size:>6} trials {row}", file=sys.stderr, flush=True)
    if arguments.save:
        results.save("load", document)
    print(json.dumps(document))


if __name__ == "__main__":
    main()

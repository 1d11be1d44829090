"""Kills a search at random moments, again and again, and shows that nothing is lost: `python benchmarks/kills.py`.

A search on a simulated device, whose clock repeats to the last digit, first runs undisturbed. Then the same search runs
in new databases: each time its coordinator is killed by SIGKILL at a moment drawn from the whole of its duration, its
start included, and started again, until it comes to its end; so often that there are `--kills` kills in all.

After each kill: no process of it is left, the database is whole, and each trial that was stored is there unchanged.
At each end: as many trials as undisturbed, no plan twice, nothing of Optuna's still running, and the same best plan.
"""

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import optuna
import results

from actune.store import Store

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from tests.processes import MARK, marked_processes  # noqa: E402

SEARCH = [
    "search",
    "--target",
    "dense-tiny",
    "--device",
    "sim:tiny",
    "--budget",
    "70%",
    "--study",
    "s",
    "--trials",
    "8",
]
GRACE_S = 20.0


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--fast", action="store_true", help="four kills")
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results/kills.json")
    options = parser.parse_args()
    document = disturbed(4 if options.fast else options.kills, random.Random(options.seed))
    print(json.dumps({"kills": document}))
    if options.save:
        results.save("kills", document)
    wrong = ("lost", "duplicated", "left_running", "damaged", "searches_with_another_best_plan", "failed")
    sys.exit(any(document[key] for key in wrong))


def disturbed(kills, moments):
    with tempfile.TemporaryDirectory() as name:
        begin_s = time.monotonic()
        process = start(Path(name))
        if process.wait() != 0:
            sys.exit(f"the undisturbed search failed:\n{process.stderr.read()}")
        duration_s = time.monotonic() - begin_s
        expected = stored(Path(name))
    counts = dict.fromkeys(("lost", "duplicated", "left_running", "damaged", "failed"), 0)
    done, searches, other_best, of_trials = 0, 0, 0, 0
    while done < kills:
        searches += 1
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            known = {}
            while True:
                process = start(folder)
                if done >= kills or not kill(process, moments.uniform(0.0, duration_s)):
                    break
                done += 1
                counts["left_running"] += left_running(folder)
                counts["damaged"] += not is_whole(folder)
                found = stored(folder)["trials"]
                counts["lost"] += sum(found.get(number) != trial for number, trial in known.items())
                of_trials += len(found) > len(known)
                known = found
                print(f"kill {done} of {kills}: {len(known)} trials stored", file=sys.stderr)
            counts["failed"] += process.wait() != 0
            counts["left_running"] += left_running(folder)
            end = stored(folder)
            counts["lost"] += sum(end["trials"].get(number) != trial for number, trial in known.items())
            counts["lost"] += max(0, len(expected["trials"]) - len(end["trials"]))
            plans = [trial.plan_hash for trial in end["trials"].values()]
            counts["duplicated"] += len(plans) - len(set(plans)) + max(0, len(plans) - len(expected["trials"]))
            counts["failed"] += end["running"] > 0
            other_best += end["best"] != expected["best"]
    return {
        "kills": done,
        "searches": searches,
        "trials_of_each": len(expected["trials"]),
        "kills_after_new_trials": of_trials,
        **counts,
        "searches_with_another_best_plan": other_best,
    }


def start(folder):
    return subprocess.Popen(
        [sys.executable, "-c", "from actune.cli import main; main()", *SEARCH],
        cwd=folder,
        env={**os.environ, MARK: str(folder), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill(process, delay_s):
    """Whether it was killed before it came to its end."""
    try:
        process.communicate(timeout=delay_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return process.returncode == -signal.SIGKILL
    return False


def left_running(folder):
    """How many processes are left once they had time to notice."""
    end_s = time.monotonic() + GRACE_S
    while (left := len(marked_processes(folder))) and time.monotonic() < end_s:
        time.sleep(0.05)
    return left


def is_whole(folder):
    path = folder / "studies" / "actune.db"
    if not path.exists():
        return True  # killed before there was one
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def stored(folder):
    """The study's trials by number, its best plan, and how many of Optuna's trials say that they run."""
    found = {"trials": {}, "best": None, "running": 0}
    path = folder / "studies" / "actune.db"
    if not path.exists() or not has_study(path):
        return found
    with Store.open(f"sqlite:///{path}", create=False) as store:
        found["trials"] = {trial.number: trial for trial in store.trials("s")}
        verdict = store.verdict("s")
        found["best"] = None if verdict is None else verdict.best_hash
    with closing(sqlite3.connect(path)) as connection:
        if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'trials'").fetchone():
            running = optuna.trial.TrialState.RUNNING.name
            query = connection.execute("SELECT count(*) FROM trials WHERE state = ?", (running,))
            found["running"] = query.fetchone()[0]
    return found


def has_study(path):
    with closing(sqlite3.connect(path)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'actune_studies'").fetchone():
            return False
        return connection.execute("SELECT 1 FROM actune_studies WHERE name = 's'").fetchone() is not None


if __name__ == "__main__":
    main()

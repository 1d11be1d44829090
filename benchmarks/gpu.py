"""A search on a card: cuts of Llama 3 8B and of a DeepSeek-V3 16B in bfloat16, at budgets of 70, 50 and 35 GB.

    python benchmarks/gpu.py --out gpu.json          # on an H100: within nine minutes
    python benchmarks/gpu.py --device sim:h100       # the same search without the card: every figure is a prediction
    python benchmarks/gpu.py --tiny --device cpu     # the same code in small, a minute

Each target is one study with all budgets. The search measures the plans that may be the best, then the presets, then
times the best ones and the presets in interleaved rounds and runs the winners for more steps. What there is so far is
written to `--out` every few seconds. At `--deadline` a search that still runs is ended, and its trials count as they
are.

A short table goes to stdout, last. `predicted` is the peak that was predicted before the trial. A ratio is the winner's
step time over that of a preset within the same budget, median of the rounds, with its 95% interval.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from actune.config import load_space
from actune.errors import ActuneError
from actune.plan import parse_plan
from actune.search import run_search
from actune.search.reporter import SilentReporter
from actune.statistics import clock_of, relative_with_interval
from actune.store import Store
from actune.study_records import StudySettings
from actune.units import Budget, format_bytes

HERE = Path(__file__).parent
TARGETS = {"llama": "card-dense", "deepseek": "card-moe"}
BUDGETS = ("70GB", "50GB", "35GB")
TINY_BUDGETS = ("85%", "65%")
POLL_S = 5.0
LEAST_S = 60.0
"""No search is started if less is left before the deadline."""
SEARCH_SHARE = 0.5
"""Of the time that a target has: no trial starts later, so that the final comparison gets the rest."""


class PrintingReporter(SilentReporter):
    """Says on stderr when what began."""

    def __init__(self):
        self._start_s = time.perf_counter()

    def stage(self, text):
        print(f"{time.perf_counter() - self._start_s:7.1f} s  {text}", file=sys.stderr, flush=True)

    def trial_finished(self, progress):
        measurement = progress.trials[-1].measurement
        peak = "" if measurement.peak_bytes is None else format_bytes(measurement.peak_bytes)
        self.stage(f"trial {progress.trials[-1].number}: {measurement.outcome} {peak} {measurement.message or ''}")


def search(name: str, arguments: argparse.Namespace) -> None:
    """One study, to its end."""
    space = HERE / "spaces" / f"{TARGETS[name]}.yaml"
    settings = StudySettings(
        target=f"{HERE}/gpu_targets.py:{'tiny_' if arguments.tiny else ''}{name}",
        budget=",".join(arguments.budgets),
        device=arguments.device,
        space=space.stem,
        space_yaml=load_space(str(space)).yaml_text,
        trials=arguments.trials,
        sampler="thompson",
        seed=0,
        workers=1,
        timeout_s=arguments.timeout,
        trial_timeout_s=arguments.deadline,
        timed_pairs=arguments.pairs,
        verdict_rounds=arguments.rounds,
    )
    with Store.open(arguments.storage, create=True) as store:
        run_search(store, name, settings, log_folder=arguments.logs, reporter=PrintingReporter())


def row_of(storage: str, name: str) -> dict | None:
    """What a study has so far; None before it begins."""
    try:
        with Store.open(storage, create=False) as store:
            if not store.has_study(name):
                return None
            study, trials, verdict = store.study(name), store.trials(name), store.verdict(name)
            predicted = {record.plan_hash: record.peak_bytes for record in store.predictions(name)}
    except ActuneError:
        return None  # the search has not made its database yet
    names = {trial.plan_hash: trial.preset or f"trial {trial.number}" for trial in trials}
    row = {
        "target": study.target.spec.rpartition(":")[2],
        "device": study.environment.device_name,
        "torch": study.environment.torch_version,
        "allocator": study.environment.allocator,
        "parameter_bytes": study.target.parameter_bytes,
        "budgets_bytes": study.budgets_bytes,
        "trials": [trial_row(trial, names, predicted, study.created_at) for trial in trials],
        "stopped": None if verdict is None else str(verdict.stopped),
        "budgets": [],
    }
    if verdict is not None:
        entries = {entry.plan_hash: entry for entry in verdict.entries}
        presets = [trial for trial in trials if trial.preset is not None and trial.plan_hash in entries]
        clock = clock_of(study.environment)
        row["budgets"] = [budget_row(budget, entries, presets, names, predicted, clock) for budget in verdict.budgets]
    return row


def trial_row(trial, names, predicted, start: str) -> dict:
    measurement = trial.measurement
    row = {"plan": names[trial.plan_hash], "description": parse_plan(trial.plan_toml).describe()}
    row |= {"outcome": str(measurement.outcome), "message": measurement.message}
    row |= {"predicted_peak_bytes": predicted.get(trial.plan_hash), "peak_bytes": measurement.peak_bytes}
    row |= {"allocated_bytes": measurement.allocated_bytes, "reserved_bytes": measurement.reserved_bytes}
    if None not in (row["predicted_peak_bytes"], row["peak_bytes"]) and row["outcome"] == "ok":
        row["error"] = row["predicted_peak_bytes"] / row["peak_bytes"] - 1
    begun, ended, since = (datetime.fromisoformat(text) for text in (trial.started_at, trial.finished_at, start))
    return row | {"began_s": (begun - since).total_seconds(), "took_s": (ended - begun).total_seconds()}


def budget_row(budget, entries, presets, names, predicted, clock) -> dict:
    row = {"budget_bytes": budget.budget_bytes, "best": names.get(budget.best_hash), "peak_bytes": budget.peak_bytes}
    row["certificate_gain"] = None if budget.certificate is None else budget.certificate.possible_gain
    if budget.best_hash is None:
        return row | {"presets": []}
    best = entries[budget.best_hash]
    row["description"] = parse_plan(budget.best_toml).describe()
    row["predicted_peak_bytes"] = predicted.get(budget.best_hash)
    fitting = [trial for trial in presets if trial.fits(budget.budget_bytes)]
    row["presets"] = []
    for trial in fitting:
        ratio, low, high = relative_with_interval(best.samples, entries[trial.plan_hash].samples, clock)
        row["presets"].append({"preset": trial.preset, "ratio": ratio, "low": low, "high": high})
    return row


def render(row: dict) -> str:
    lines = [
        f"{row['target']} on {row['device']}, torch {row['torch']}, allocator '{row['allocator'] or ''}': search "
        f"{row['search_s']:.0f} s with {len(row['trials'])} trials, {row['ended']}"
    ]
    measured = "simulated" if "(simulated" in row["device"] else "measured"
    lines.append(f"  {'plan':<15} {'predicted':>10} {measured:>10} {'error':>8}  outcome")
    for trial in row["trials"]:
        error = "" if "error" not in trial else f"{trial['error']:+.2%}"
        peaks = " ".join(f"{_size(trial[key]):>10}" for key in ("predicted_peak_bytes", "peak_bytes"))
        lines.append(f"  {trial['plan']:<15} {peaks} {error:>8}  {trial['outcome']}")
    for budget in row["budgets"]:
        head = f"  within {_size(budget['budget_bytes'])}: {budget['best'] or 'no plan'}"
        if budget["best"] is not None:
            head += f", predicted {_size(budget['predicted_peak_bytes'])}, {measured} {_size(budget['peak_bytes'])}"
        lines.append(head)
        for preset in budget["presets"]:
            interval = f"{preset['ratio']:.3f} ({preset['low']:.3f} to {preset['high']:.3f})"
            lines.append(f"    over {preset['preset']:<15} {interval}")
    return "\n".join(lines)


def _size(size_bytes: int | None) -> str:
    """In the unit of the budgets."""
    if size_bytes is None:
        return "–"
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e8 else format_bytes(size_bytes)


def watch(name: str, arguments: argparse.Namespace, storage: str, end_s: float, keep) -> dict | None:
    """Runs a search in a process of its own until it ends or the deadline comes, and hands on what there is."""
    start_s = time.monotonic()
    share_s = (end_s - start_s) / arguments.left
    command = [sys.executable, __file__, *sys.argv[1:], "--one", name, "--storage", storage]
    command += [
        "--timeout",
        str(SEARCH_SHARE * share_s),
        "--logs",
        f"{Path(storage.removeprefix('sqlite:///')).parent}",
    ]
    process = subprocess.Popen(command, stdout=sys.stderr, start_new_session=True)
    row, ended = None, None
    while ended is None:
        try:
            ended = "whole" if process.wait(timeout=POLL_S) == 0 else f"FAILED with exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            if time.monotonic() > start_s + share_s:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # its worker ends with the pipe between them
                process.wait()
                ended = "ENDED at the deadline"
        row = row_of(storage, name)
        if row is not None:
            row |= {"search_s": round(time.monotonic() - start_s, 1), "ended": ended or "running"}
            keep(row)
    if row is None:
        print(f"{name}: {ended} before its study began", file=sys.stderr)
    return row


def main() -> None:
    arguments = parse_arguments()
    if arguments.one is not None:
        search(arguments.one, arguments)
        return
    start_s = time.monotonic()
    end_s = start_s + arguments.deadline
    rows: dict[str, dict] = {}

    def keep(row: dict) -> None:
        rows[row["target"]] = row
        document = {"benchmark": "gpu", "took_s": round(time.monotonic() - start_s, 1), "rows": list(rows.values())}
        if arguments.out is not None:
            arguments.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory() as folder:
        for place, name in enumerate(arguments.targets):
            arguments.left = len(arguments.targets) - place
            if end_s - time.monotonic() < LEAST_S:
                print(f"{name}: not begun, since the deadline is near", file=sys.stderr)
                continue
            watch(name, arguments, f"sqlite:///{folder}/studies.db", end_s, keep)
    print("\n".join(map(render, rows.values())))
    if any("FAILED" in row["ended"] for row in rows.values()) or not rows:
        sys.exit(1)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="as the command line takes it")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS), help="the first matters most")
    parser.add_argument("--budgets", nargs="+", type=lambda text: Budget.parse(text).text, help="the largest first")
    parser.add_argument("--trials", type=int, default=9, help="of each search, at most")
    parser.add_argument("--pairs", type=int, default=3, help="of steps that a trial is timed for")
    parser.add_argument("--rounds", type=int, default=7, help="of the final comparison")
    parser.add_argument("--deadline", type=float, default=520.0, help="seconds for all; then the table is printed")
    parser.add_argument("--out", type=Path, help="a JSON file, rewritten as results come")
    parser.add_argument("--tiny", action="store_true", help="sizes for a processor, budgets as shares")
    for name, kind in (("--one", str), ("--storage", str), ("--timeout", float), ("--logs", Path)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)  # of the process that runs one search
    arguments = parser.parse_args()
    if arguments.budgets is None:
        arguments.budgets = TINY_BUDGETS if arguments.tiny else BUDGETS
    if arguments.tiny:
        arguments.trials, arguments.pairs, arguments.rounds = 4, 2, 3
    return arguments


if __name__ == "__main__":
    main()

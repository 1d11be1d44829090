"""How many trials a search needs on simulated devices, where every plan can be enumerated and so the optimum is known.

    python benchmarks/search_simulated.py                    all cases and samplers, 10 seeds each (up to an hour)
    python benchmarks/search_simulated.py --fast             two cases, three seeds, two samplers
    python benchmarks/search_simulated.py --overhead         what a study takes beside its measuring

Trials are answered at once (`simulated_engine.py`): peaks exactly, step times with noise, and the profiles that the
search predicts from are wrong by up to 30% per policy. A table on stderr, one line of JSON on stdout.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import search_overhead
import yaml
from results import save
from search_studies import empty_database, settings_for, study_store
from simulated_engine import Errors, SimulatedEngine
from simulated_truth import Enumeration, Optimum, Recording, Truth, deviation, menus_of

from actune.config import parse_space
from actune.plan import Treatment, parse_plan
from actune.records import LoadTarget, Outcome
from actune.search import SAMPLERS, Progress, run_search
from actune.search.forecast import DERIVED_SETS
from actune.search.space import ModelSpace
from actune.statistics import clock_of, relative_step_time
from actune.store import Store
from actune.study_records import Verdict

HERE = Path(__file__).parent
DEVICE = "sim:tiny"
TRIALS = 25
FAST_TRIALS = 10
SEEDS = 10
PROCESSES = 2
NEAR = 1.01
RANDOM_PLANS_CHECKED = 5


@dataclass(frozen=True, slots=True)
class Case:
    """A target, what its layers may get, and how far the budget lies from the smallest peak to the fastest plan's."""

    target: str
    space: str
    budget_share: float

    @property
    def with_save_sets(self) -> bool:
        """Whether derived save sets are added: with the larger menu there would be too many plans."""
        return self.space == "presets"


MOE = f"hf:{HERE.parent}/examples/hf/qwen3-moe-tiny.json?layers=6"
WIDE_AND_NARROW = f"{HERE}/search_targets.py:WideAndNarrow"
ENCODER_DECODER = f"{HERE}/prediction_targets.py:EncoderDecoder"
CASES = {
    "dense, tight": Case("dense-tiny?layers=7", "treatments", 0.3),
    "dense, middle": Case("dense-tiny?layers=6", "presets", 0.5),
    "dense, loose": Case("dense-tiny?layers=7", "treatments", 0.75),
    "moe, tight": Case("moe-tiny?layers=6", "presets", 0.15),
    "moe, loose": Case("moe-tiny?layers=7", "treatments", 0.7),
    "qwen3-moe, middle": Case(MOE, "presets", 0.4),
    "wide and narrow, tight": Case(WIDE_AND_NARROW, "presets", 0.2),
    "wide and narrow, middle": Case(WIDE_AND_NARROW, "treatments", 0.5),
    "encoder-decoder, tight": Case(ENCODER_DECODER, "treatments", 0.2),
    "encoder-decoder, loose": Case(ENCODER_DECODER, "treatments", 0.7),
}
FAST_CASES = ("dense, tight", "moe, loose")


@dataclass(frozen=True, slots=True)
class Run:
    """One study.

    Attributes:
        to_incumbent: trials until the one that was measured to be the fastest is truly near the optimum; None if never.
        to_named: trials until the one that the search itself takes for the best is, by all that it knows.
        to_any: trials until any of them is.
        trials: in all.
        stopped: why there were no more, where the verdict says so.
        regret: how much slower than the optimum the plan that the verdict names is, as a share; None without one.
        bound: the certificate's lower bound over the optimum's true step time; None without a certificate.
        pairs: steps timed beside a reference.
        outside_s: wall time outside of the engine.
    """

    seed: int
    to_incumbent: int | None
    to_named: int | None
    to_any: int | None
    trials: int
    stopped: str | None
    regret: float | None
    bound: float | None
    pairs: int
    outside_s: float


class Follower:
    """A reporter that notes which trial the search takes for the best after each one, by number."""

    def __init__(self) -> None:
        self.named: list[int | None] = []

    def stage(self, text: str) -> None:
        pass

    def trial_finished(self, progress: Progress) -> None:
        self.named.append(progress.best)


class Bench:
    """A case with all that is known of it; runs studies."""

    def __init__(self, case: Case, recording: Recording, database: Path, *, by_class: bool = False) -> None:
        self._case, self._recording, self._database, self._by_class = case, recording, database, by_class
        self.truth = Truth(recording)
        text = (HERE / "spaces" / f"{case.space}.yaml").read_text(encoding="utf-8")
        space = ModelSpace(parse_space(text, name=case.space), self.truth.structure)
        menus = menus_of(recording, space, save_sets=DERIVED_SETS if case.with_save_sets else 0)
        # Samplers that know the space's menu alone are to choose from the same treatments.
        self._space_yaml = with_entries(text, menus)
        self.enumeration = Enumeration(self.truth.stack(menus), self.truth.structure.layer_fqns)
        self.treatments = max(map(len, menus.values()))
        self.budget_bytes = self.enumeration.budget_bytes(case.budget_share)
        self.optimum: Optimum = self.enumeration.optimum(self.budget_bytes)
        assert self.truth.of(self.optimum.plan).peak_bytes <= self.budget_bytes
        assert math.isclose(self.truth.of(self.optimum.plan).step_time_s, self.optimum.step_time_s, rel_tol=1e-9)

    def run(self, sampler: str, seed: int, trials: int) -> Run:
        engine = SimulatedEngine(
            self._recording, self.truth, Errors(seed, by_class=self._by_class), with_save_sets=self._case.with_save_sets
        )
        settings = settings_for(
            self._case.target,
            DEVICE,
            budget=f"{self.budget_bytes}B",
            space=self._case.space,
            space_yaml=self._space_yaml,
            trials=trials,
            sampler=sampler,
            seed=seed,
        )
        follower = Follower()
        with study_store(self._database) as (store, folder):
            start_s = time.perf_counter()
            verdict = run_search(
                store, "s", settings, log_folder=folder, reporter=follower, engine_factory=engine.factory
            )
            wall_s = time.perf_counter() - start_s
            return self._judged(store, verdict, engine, follower.named, seed, wall_s)

    def _judged(
        self,
        store: Store,
        verdict: Verdict,
        engine: SimulatedEngine,
        named: Sequence[int | None],
        seed: int,
        wall_s: float,
    ) -> Run:
        clock = clock_of(self._recording.load().environment)
        trials = sorted((t for t in store.trials("s") if not t.reused), key=lambda t: t.finished_at)
        over_optimum = {trial.number: self._over_optimum(trial.plan_toml) for trial in trials}
        timed: dict[int, float] = {}
        measured_best: list[int | None] = []
        for trial in trials:
            measured = relative_step_time(trial.measurement, clock)
            if trial.measurement.outcome is Outcome.OK and measured is not None:
                timed[trial.number] = measured
            measured_best.append(min(timed, key=timed.__getitem__, default=None))

        def trials_until_near(numbers: Sequence[int | None]) -> int | None:
            counts = (
                count
                for count, number in enumerate(numbers, start=1)
                if number is not None and over_optimum[number] <= NEAR
            )
            return next(counts, None)

        bound = bound_of(verdict)
        if bound is not None:
            assert verdict.reference_hash is not None
            bound *= self._over_optimum(store.plan_toml(verdict.reference_hash))
        return Run(
            seed,
            trials_until_near(measured_best),
            trials_until_near(named),
            trials_until_near([trial.number if trial.number in timed else None for trial in trials]),
            len(trials),
            stop_reason_of(verdict),
            None if verdict.best_toml is None else self._over_optimum(verdict.best_toml) - 1,
            bound,
            engine.pairs,
            wall_s - engine.busy_s,
        )

    def _over_optimum(self, plan_toml: str) -> float:
        return self.truth.of(parse_plan(plan_toml)).step_time_s / self.optimum.step_time_s


def bound_of(verdict: Verdict) -> float | None:
    """The certificate's lower bound of any plan's step time, relative to the reference's; None without one."""
    certificates = [budget.certificate for budget in getattr(verdict, "budgets", ())]
    return certificates[0].bound_relative_step_time if certificates and certificates[0] is not None else None


def stop_reason_of(verdict: Verdict) -> str | None:
    """Why the search had no more trials; None of a verdict that does not say."""
    reason = getattr(verdict, "stopped", None)
    return None if reason is None else str(reason)


def with_entries(space_yaml: str, menus: dict[str, tuple[Treatment, ...]]) -> str:
    """The space with the menus' save sets as entries of its own, for the layers that have them."""
    layers_of: dict[Treatment, list[str]] = {}
    for fqn, menu in menus.items():
        for treatment in menu:
            if treatment.save:
                layers_of.setdefault(treatment, []).append(fqn)
    table = yaml.safe_load(space_yaml)
    for treatment, fqns in layers_of.items():
        knobs = {name: list(v) if isinstance(v, tuple) else v for name, v in treatment.knobs_off_default().items()}
        table["menu"].append({"policy": treatment.policy, "layers": fqns, **knobs})
    return yaml.safe_dump(table)


def run_case(
    name: str, samplers: Sequence[str], seeds: int, trials: int, plans_checked: int, by_class: bool
) -> dict[str, Any]:
    """All studies of a case."""
    case = CASES[name]
    with (
        tempfile.TemporaryDirectory() as folder,
        Recording(LoadTarget(case.target, DEVICE, seed=0)) as recording,
    ):
        bench = Bench(case, recording, empty_database(Path(folder)), by_class=by_class)
        checked = [bench.optimum.plan, *bench.enumeration.random_plans(plans_checked, seed=0)]
        row = {
            "case": name,
            "layers": len(bench.truth.structure.layer_fqns),
            "treatments": bench.treatments,
            "plans": bench.enumeration.plans,
            "budget_bytes": bench.budget_bytes,
            "optimum_step_time_s": bench.optimum.step_time_s,
            "optimum": bench.optimum.plan.describe(),
            "worst_over_best": bench.optimum.worst_over_best,
            "near_share": bench.optimum.near_share,
            "fitting_share": bench.optimum.fitting_share,
            "measured_by_a_worker": asdict(deviation(recording, bench.truth, checked)),
            "samplers": {},
        }
        calls_before = recording.worker_calls
        for sampler in samplers:
            runs = [bench.run(sampler, seed, trials) for seed in range(seeds)]
            row["samplers"][sampler] = summary(runs, trials) | {"runs": [asdict(run) for run in runs]}
        row["worker_calls_of_studies"] = recording.worker_calls - calls_before
        return row


def summary(runs: Sequence[Run], cap: int) -> dict[str, Any]:
    """Over the seeds of a case: a run that never came near counts as one trial more than the cap."""
    to_incumbent = sorted(cap + 1 if run.to_incumbent is None else run.to_incumbent for run in runs)
    to_named = sorted(cap + 1 if run.to_named is None else run.to_named for run in runs)
    to_any = sorted(cap + 1 if run.to_any is None else run.to_any for run in runs)
    regrets = [run.regret for run in runs if run.regret is not None]
    bounds = [run.bound for run in runs if run.bound is not None]
    trials = [run.trials for run in runs]
    return {
        "median_trials": statistics.median(to_incumbent),
        "p90_trials": nearest_rank(to_incumbent, 0.9),
        "max_trials": to_incumbent[-1],
        "not_reached": sum(run.to_incumbent is None for run in runs),
        "median_trials_named": statistics.median(to_named),
        "p90_trials_named": nearest_rank(to_named, 0.9),
        "median_trials_of_any": statistics.median(to_any),
        "p90_trials_of_any": nearest_rank(to_any, 0.9),
        "without_a_plan": len(runs) - len(regrets),
        "median_regret": statistics.median(regrets) if regrets else None,
        "max_regret": max(regrets, default=None),
        "median_trials_run": statistics.median(trials),
        "most_trials_run": max(trials),
        "stopped_by_itself": sum(count < cap for count in trials),
        "stopped": dict(Counter(run.stopped for run in runs if run.stopped is not None)),
        "certificates": len(bounds),
        "lowest_bound": min(bounds, default=None),
        "highest_bound": max(bounds, default=None),
        "bounds_above_the_optimum": sum(bound > 1 + 1e-9 for bound in bounds),
        "median_pairs": statistics.median(run.pairs for run in runs),
        "median_outside_s": round(statistics.median(run.outside_s for run in runs), 2),
    }


def nearest_rank(ordered: Sequence[int], share: float) -> int:
    """The smallest value that at least this share of all are not above."""
    return ordered[math.ceil(share * len(ordered)) - 1]


@contextmanager
def finished_cases(arguments: argparse.Namespace) -> Iterator[Iterator[dict[str, Any]]]:
    """The cases' rows as they come."""
    each = (arguments.samplers, arguments.seeds, arguments.trials, arguments.plans_checked, arguments.by_class)
    with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(run_case, name, *each) for name in arguments.cases]
        yield (future.result() for future in as_completed(futures))


def render(row: dict[str, Any]) -> str:
    checked = row["measured_by_a_worker"]
    lines = [
        f"{row['case']}: {row['layers']} layers of {row['treatments']} treatments, {row['plans']} plans; "
        f"{row['fitting_share']:.1%} fit, the slowest +{row['worst_over_best'] - 1:.1%}, "
        f"{row['near_share']:.3%} of them within 1%; {checked['plans']} plans run by a worker: peak off by "
        f"{checked['peak']:.1e}, step time by {checked['step_time']:.1e} at most"
    ]
    for sampler, of in row["samplers"].items():
        median_regret, max_regret = ("–" if of[k] is None else f"{of[k]:.2%}" for k in ("median_regret", "max_regret"))
        bounds = "no certificates"
        if of["certificates"]:
            bounds = (
                f"bound {of['lowest_bound']:.3f} to {of['highest_bound']:.3f} of the optimum, "
                f"{of['bounds_above_the_optimum']} above"
            )
        lines.append(
            f"  {sampler:<10} within 1% after {of['median_trials']:g} (median) {of['p90_trials']} (p90) "
            f"{of['max_trials']} (max) trials, not in {of['not_reached']}; "
            f"named: {of['median_trials_named']:g} {of['p90_trials_named']}; "
            f"any: {of['median_trials_of_any']:g} {of['p90_trials_of_any']}; regret {median_regret} {max_regret}; "
            f"ran {of['median_trials_run']:g} trials, at most {of['most_trials_run']}, "
            f"{of['stopped_by_itself']} stopped by themselves; {bounds}; {of['median_outside_s']} s each"
        )
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--samplers", nargs="+", choices=list(SAMPLERS), default=list(SAMPLERS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--by-class", action="store_true", help="a policy is off by another share at each layer class")
    parser.add_argument("--fast", action="store_true", help="two cases, three seeds, the first sampler and the last")
    parser.add_argument("--overhead", action="store_true", help="instead: one-second trials, and a proposal's time")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    arguments = parser.parse_args()
    arguments.trials, arguments.plans_checked = TRIALS, RANDOM_PLANS_CHECKED
    if arguments.fast:
        names = list(SAMPLERS)
        arguments.cases, arguments.samplers, arguments.seeds = list(FAST_CASES), [names[0], names[-1]], 3
        arguments.trials, arguments.plans_checked = FAST_TRIALS, 1
    return arguments


def main() -> None:
    arguments = parse_arguments()
    start_s = time.monotonic()
    if arguments.overhead:
        name = "search-overhead"
        document = {"benchmark": name, **search_overhead.measured(arguments.samplers)}
    else:
        name = "search-simulated"
        rows = []
        with finished_cases(arguments) as finished:
            for row in finished:
                rows.append(row)
                print(render(row), file=sys.stderr, flush=True)
        rows.sort(key=lambda row: arguments.cases.index(row["case"]))
        document = {"benchmark": name, "seeds": arguments.seeds, "most_trials": arguments.trials, "cases": rows}
    document["wall_s"] = round(time.monotonic() - start_s, 1)
    if arguments.save:
        save(name, document)
    print(json.dumps(document))


if __name__ == "__main__":
    main()

"""What a study takes beside its measuring: with trials of one second, and with 128 layers to choose for."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

from search_studies import empty_database, settings_for, study_store
from simulated_engine import Errors, SimulatedEngine
from simulated_truth import Recording, Truth

from actune.config import load_space, space_for
from actune.records import LoadTarget
from actune.search import SilentReporter, run_search
from actune.search.agenda import Agenda
from actune.search.study import PlanStudy

HERE = Path(__file__).parent
# 12 layers for the one-second trials. 128 layers need a large device; how long its steps are does not matter.
ONE_SECOND = {"target": "moe-tiny-12", "device": "sim:tiny", "trials": 12, "trial_s": 1.0}
LARGE = {"target": f"{HERE}/search_targets.py:DeepWideAndNarrow", "device": "sim:h100", "trials": 20, "trial_s": 0.0}
BUDGET = "60%"

PROPOSING = ((Agenda, "prepare"), (PlanStudy, "ask"))
"""The methods that find the next plan. Their time from one trial to the next is what a proposal takes."""


def measured(samplers: Sequence[str]) -> dict[str, Any]:
    """Both studies for each sampler, in the space that a search would take by default."""
    document: dict[str, Any] = {}
    for name, study in (("one_second_trials", ONE_SECOND), ("layers_128", LARGE)):
        load = LoadTarget(study["target"], study["device"], seed=0)
        with tempfile.TemporaryDirectory() as folder, Recording(load) as recording:
            database, truth = empty_database(Path(folder)), Truth(recording)
            _run(recording, truth, database, study | {"trial_s": 0.0}, samplers[0])  # fills the recording
            document[name] = {s: _run(recording, truth, database, study, s) for s in samplers}
        for sampler, of in document[name].items():
            print(f"{name} {sampler:<10} {of}", file=sys.stderr, flush=True)
    return document


def _run(
    recording: Recording, truth: Truth, database: Path, study: dict[str, Any], sampler: str
) -> dict[str, float | int]:
    """One study.

    `outside_share` is of the wall time: what is outside of all calls of the engine. `outside_process_s` is the same in
    the process's own time, which other programs don't add to. `between_trials_s` is from the end of a trial to the
    start of the next: store, tell, learn, ask, solve. `proposal_s` is what PROPOSING takes of it.
    """
    space = load_space(space_for(truth.structure))
    settings = settings_for(
        study["target"],
        study["device"],
        budget=BUDGET,
        space=space.name,
        space_yaml=space.yaml_text,
        trials=study["trials"],
        sampler=sampler,
        seed=0,
    )
    engine = SimulatedEngine(recording, truth, Errors(seed=0), with_save_sets=True, trial_s=study["trial_s"])
    with study_store(database) as (store, folder), _noted(PROPOSING) as proposing:
        start_s, start_process_s = time.perf_counter(), time.process_time()
        run_search(store, "s", settings, log_folder=folder, reporter=SilentReporter(), engine_factory=engine.factory)
        wall_s = time.perf_counter() - start_s
        process_s = time.process_time() - start_process_s
    gaps = list(zip(engine.trial_ends_s, engine.trial_starts_s[1:], strict=False))
    between_s = [next_start_s - end_s for end_s, next_start_s in gaps]
    proposals_s = [
        sum(span_s for at_s, span_s in proposing if end_s <= at_s < next_start_s) for end_s, next_start_s in gaps
    ]
    return {
        "trials": len(engine.trial_starts_s),
        "wall_s": round(wall_s, 2),
        "outside_s": round(wall_s - engine.busy_s, 2),
        "outside_process_s": round(process_s - engine.busy_process_s, 2),
        "outside_share": round(1 - engine.busy_s / wall_s, 4),
        "median_proposal_s": round(statistics.median(proposals_s), 4),
        "max_proposal_s": round(max(proposals_s), 4),
        "median_between_trials_s": round(statistics.median(between_s), 4),
        "max_between_trials_s": round(max(between_s), 4),
    }


@contextmanager
def _noted(methods: Sequence[tuple[type, str]]) -> Iterator[list[tuple[float, float]]]:
    """Of each call of the methods, when it began and how long it took, in seconds."""
    calls: list[tuple[float, float]] = []

    def noting(original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def noted(*args: Any, **kwargs: Any) -> Any:
            start_s = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                calls.append((start_s, time.perf_counter() - start_s))

        return noted

    with ExitStack() as patches:
        for owner, method in methods:
            patches.enter_context(patch.object(owner, method, noting(getattr(owner, method))))
        yield calls

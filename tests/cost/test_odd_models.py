"""Peaks of models that are odd in one way each: predicted to the byte, or an error that says why not."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import pytest

from actune.cost.model import CostModel
from actune.cost.optimum import best_plan
from actune.cost.stack import stack_of
from actune.cost.survey import begin_survey, extend_survey
from actune.engine import LocalEngine
from actune.errors import CostError, TargetError
from actune.measure import Workload, measure_plan, open_device, profile_plan
from actune.plan import NO_AC, Plan, Treatment, dump_plan
from actune.records import MeasurePlan, Outcome
from actune.search import run_search
from actune.store import Store
from actune.study_records import StudySettings
from tests.search.fakes import Listener

EXACT = (
    "odd_models:SharedLayer",
    "odd_models:SkippedLayer",
    "odd_models:TwoForwards",
    "odd_models:OneLayer",
    "odd_models:Siblings",
    "odd_models:ResultsOfBranches",
    "odd_models:BackwardOutOfOrder",
    "odd_models:CollectedByHooks",
    "odd_models:PositionsForAll",
    "odd_models:FrozenEncoder",
    "odd_models:FrozenLowerLayers",
    "odd_models:FrozenEmbedding",
    "odd_models:LowRank",
    "odd_models:TiedEnds",
    "odd_models:TiedLayers",
    "odd_models:HalfPrecision",
    "odd_models:PlainSgd",
    "odd_layers:Pairs",
    "odd_layers:Dicts",
    "odd_layers:Keywords",
    "odd_layers:HiddenStates",
    "odd_layers:IntermediateLoss",
    "odd_layers:AuxiliaryLoss",
    "odd_layers:LongSkips",
    "odd_layers:DenselyConnected",
    "odd_layers:InPlace",
    "odd_layers:InPlaceBetween",
    "odd_layers:Views",
    "odd_layers:Dropout",
    "odd_layers:Nested",
    "odd_layers:Convolutions",
    "odd_layers:ManySizes",
)
MENU = (
    NO_AC,
    Treatment("full"),
    Treatment("selective"),
    Treatment("selective", save_every_nth_mm=1, save_ops=("default", "gelu", "relu")),
)


def workload_of(name: str) -> Workload:
    return Workload(f"tests.cost.{name}", open_device("cpu"), seed=0)


def model_of(workload: Workload) -> CostModel:
    run = partial(profile_plan, workload)
    profile = begin_survey(workload.structure, run, timed_steps=1)
    menus = dict.fromkeys(workload.structure.layer_fqns, MENU)
    return CostModel(extend_survey(profile, menus, run, timed_steps=1))


def mixed_plans(workload: Workload, count: int) -> list[Plan]:
    rng = random.Random(3)
    return [
        Plan.from_treatments({fqn: rng.choice(MENU) for fqn in workload.structure.layer_fqns}) for _ in range(count)
    ]


def measured_peak_bytes(workload: Workload, plan: Plan) -> int:
    toml = dump_plan(plan, with_provenance=False)
    measurement = measure_plan(workload, MeasurePlan(toml, None, None, timed_pairs=0)).measurement
    assert measurement.peak_bytes is not None, measurement.message
    return measurement.peak_bytes


@pytest.mark.parametrize("name", EXACT)
def test_peaks_are_predicted_to_the_byte_and_the_best_plan_fits(name: str) -> None:
    workload = workload_of(name)
    layer_fqns = workload.structure.layer_fqns
    model = model_of(workload)
    plans = [Plan(), *mixed_plans(workload, 4)]
    predicted = [model.predict(plan, layer_fqns).peak_bytes for plan in plans]
    measured = [measured_peak_bytes(workload, plan) for plan in plans]
    assert predicted == measured

    stack = stack_of(model, dict.fromkeys(layer_fqns, MENU))
    full = Plan.from_treatments(dict.fromkeys(layer_fqns, Treatment("full")))
    full_bytes = model.predict(full, layer_fqns).peak_bytes
    assert full_bytes is not None
    budget_bytes = (measured[0] + full_bytes) // 2
    best = best_plan(stack, layer_fqns, budget_bytes)
    best_bytes = measured_peak_bytes(workload, best.plan)
    assert best_bytes == best.prediction.peak_bytes
    assert best_bytes <= budget_bytes

    # The solver's peaks are the model's own, or higher where what layers share lives longer under some plans.
    rng = random.Random(5)
    for _ in range(20):
        options = {fqn: rng.randrange(len(MENU)) for fqn in layer_fqns}
        choice = [options[fqn] for fqn, _ in stack.calls]
        peak_bytes = stack.predict(choice).peak_bytes
        assert peak_bytes is not None
        assert peak_bytes <= stack.problem.peak_bytes(choice) <= 1.03 * peak_bytes


def test_copies_that_autocast_keeps_are_all_that_a_prediction_is_off_by() -> None:
    """Autocast frees its copies of the weights as it ends, but those that no AC holds, later: that is no layer's."""
    workload = workload_of("odd_models:Autocast")
    layer_fqns = workload.structure.layer_fqns
    model = model_of(workload)
    copies_bytes = 2 * sum(
        parameter.numel() for fqn in layer_fqns for parameter in workload.model.get_submodule(fqn).parameters()
    )
    for plan in (Plan(), *mixed_plans(workload, 4)):
        predicted_bytes = model.predict(plan, layer_fqns).peak_bytes
        assert predicted_bytes is not None
        assert abs(measured_peak_bytes(workload, plan) - predicted_bytes) <= copies_bytes


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "odd_models:LayerDrop",
            CostError,
            "the layers are not called alike in each step: layers.0, layers.1, layers.3",
        ),
        # Who notices first depends on how many steps it takes until their times have settled.
        (
            "odd_models:SkipsEverySecondStep",
            (TargetError, CostError),
            "the layers are not called alike in each step",
        ),
        ("odd_models:GradientPenalty", CostError, r"layers\.3 has more than one backward for one forward"),
    ],
)
def test_what_can_not_be_predicted_is_said(
    name: str, error: type[Exception] | tuple[type[Exception], ...], message: str
) -> None:
    workload = workload_of(name)
    with pytest.raises(error, match=message):
        model_of(workload)
    assert measured_peak_bytes(workload, Plan()) > 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("odd_models:MicroBatches", "the forward of layers.0 comes after another layer's backward"),
        ("odd_models:BackwardsInForwardOrder", "does not come in the reverse order"),
    ],
)
def test_plans_are_predicted_where_none_can_be_solved_for(name: str, message: str) -> None:
    workload = workload_of(name)
    layer_fqns = workload.structure.layer_fqns
    model = model_of(workload)
    for plan in (Plan(), *mixed_plans(workload, 4)):
        assert model.predict(plan, layer_fqns).peak_bytes == measured_peak_bytes(workload, plan)
    with pytest.raises(CostError, match=message):
        stack_of(model, dict.fromkeys(layer_fqns, MENU))


def test_a_search_goes_on_without_predictions(tmp_path: Path) -> None:
    settings = StudySettings(
        target="tests.cost.odd_models:LayerDrop",
        budget="1MiB",
        device="cpu",
        space="two",
        space_yaml="schema: 1\nsegments: 1\npresets: [full]\nmenu: [policy: none, policy: full]",
        trials=2,
        sampler="random",
        seed=0,
        workers=1,
        timeout_s=None,
        trial_timeout_s=60.0,
        timed_pairs=1,
        verdict_rounds=1,
    )
    listener = Listener()
    with Store.open(f"sqlite:///{tmp_path}/actune.db", create=True) as store:
        verdict = run_search(
            store, "a", settings, log_folder=tmp_path / "logs", reporter=listener, engine_factory=LocalEngine
        )
        trials = store.trials("a")
    # Which of the layers is missing first, when ops are traced.
    (said,) = [stage for stage in listener.stages if stage.startswith("searching without predictions: ")]
    assert "layer 'layers.2' is not called in step 2" in said
    assert [trial.measurement.outcome for trial in trials] == [Outcome.OK, Outcome.OK]
    assert verdict.best_hash is not None

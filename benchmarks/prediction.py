"""Predicted against measured: peaks and step times of random mixed plans, eager and compiled, with none left out.

    python benchmarks/prediction.py                  all targets, eager and compiled (hours: plans compile)
    python benchmarks/prediction.py --modes off      eager alone (minutes)
    python benchmarks/prediction.py --fast           two small targets, few plans

A table on stderr, one line of JSON on stdout. Peaks come from the allocator, times from interleaved rounds.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from results import save
from scipy.stats import spearmanr

from actune.config import load_space, space_for
from actune.cost.derive import derived_treatments
from actune.cost.outlook import Outlook
from actune.engine import LocalEngine
from actune.errors import ActuneError
from actune.op_trace import TraceLayers
from actune.plan import NO_AC, Plan, dump_plan
from actune.records import LoadTarget, MeasurePlan, MeasureRounds, Outcome
from actune.search.space import ModelSpace

HERE = Path(__file__).parent
TARGETS = {
    "dense-tiny": "dense-tiny",
    "moe-tiny": "moe-tiny",
    "llama": f"hf:{HERE.parent}/examples/hf/llama-tiny.json",
    "qwen3-moe": f"hf:{HERE.parent}/examples/hf/qwen3-moe-tiny.json",
    "biases and dropout": f"{HERE}/prediction_targets.py:Biased",
    "encoder-decoder": f"{HERE}/prediction_targets.py:EncoderDecoder",
    "loop over experts": f"{HERE}/prediction_targets.py:LoopOverExperts",
}
MODES = ("off", "inside", "layer", "model")
SPACE_OF_MODE = {"inside": "everything"}  # the dense and MoE spaces have two treatments for it


def main() -> None:
    arguments = parse_arguments()
    rows = []
    for name in arguments.targets:
        for mode in arguments.modes:
            with tempfile.TemporaryDirectory() as folder:
                load = LoadTarget(TARGETS[name], "cpu", 0)
                with LocalEngine(load, workers=1, timeout_s=3600, log_folder=Path(folder)) as engine:
                    row = {"target": name, "compile": mode}
                    try:
                        row |= compare(engine, mode, arguments)
                    except ActuneError as error:
                        row["failed"] = str(error)
            rows.append(row)
            print(render(row), file=sys.stderr, flush=True)
            document = {"benchmark": "prediction", "plans_each": arguments.plans, "rows": rows}
            if arguments.save:
                save("-".join(["prediction", *arguments.modes]), document)
    print(json.dumps(document))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--plans", type=int, default=20, help="random mixed plans of each target and mode")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds that time all plans; 0: no times")
    parser.add_argument("--treatments", type=int, default=0, help="at most so many of the menu, spread; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    arguments = parser.parse_args()
    if arguments.fast:
        arguments.targets, arguments.modes = ["dense-tiny", "loop over experts"], ["off"]
        arguments.plans, arguments.rounds, arguments.treatments = 5, 3, 4
    return arguments


def compare(engine: LocalEngine, mode: str, arguments: argparse.Namespace) -> dict[str, object]:
    """Profiles, predicts random plans, and then measures them."""
    structure = engine.load().target.structure
    space = ModelSpace(load_space(SPACE_OF_MODE.get(mode, space_for(structure))), structure)
    menus = {fqn: list(group.menu_under(mode).values()) for group in space.groups for fqn in group.layer_fqns}
    if mode == "off":
        traced = engine.trace_layers(TraceLayers(dump_plan(Plan(), with_provenance=False)))
        of_class = derived_treatments(traced)
        for layer_class in structure.classes:
            for fqn in layer_class.layer_fqns:
                menus[fqn] = list(dict.fromkeys([*menus[fqn], *of_class.get(layer_class.name, ())]))
    if arguments.treatments:
        step = {fqn: max(1, -(-len(menu) // arguments.treatments)) for fqn, menu in menus.items()}
        menus = {fqn: list(dict.fromkeys([NO_AC, *menu[:: step[fqn]]])) for fqn, menu in menus.items()}
    outlook = Outlook(structure, engine.profile)
    start_s = time.monotonic()
    if mode != "model":  # there each plan is calibrated by a step of its own
        outlook.learn(mode, menus)
    profile_s = time.monotonic() - start_s
    rng = random.Random(arguments.seed)
    plans: dict[Plan, None] = {}
    while len(plans) < arguments.plans:
        treatments = {fqn: rng.choice(menus[fqn]) for fqn in structure.layer_fqns}
        plans[Plan.from_treatments(treatments, compile=mode)] = None
    predictions = [outlook.predict(plan) for plan in plans]
    tomls = [dump_plan(plan, with_provenance=False) for plan in plans]
    measured = [engine.measure(MeasurePlan(toml, None, None, timed_pairs=0)) for toml in tomls]
    failed = [m.message for m in measured if m.outcome is not Outcome.OK]
    assert not failed, failed
    errors = [
        abs(prediction.peak_bytes - m.peak_bytes) / m.peak_bytes
        for prediction, m in zip(predictions, measured, strict=True)
    ]
    document = {
        "layers": len(structure.layer_fqns),
        "treatments": max(map(len, menus.values())),
        "plans": len(plans),
        "exact_to_the_byte": sum(error == 0 for error in errors),
        "median_peak_error": statistics.median(errors),
        "largest_peak_error": max(errors),
        "steps_to_profile": outlook.steps_run,
        "steps_per_treatment_and_class": outlook.steps_run
        / sum(len({t for fqn in c.layer_fqns for t in menus[fqn]}) for c in structure.classes),
        "profile_s": round(profile_s, 1),
    }
    if arguments.rounds:
        samples = engine.measure_rounds(MeasureRounds(tuple(tomls), arguments.rounds)).samples
        measured_s = [statistics.median(sample.process_s for sample in of_plan) for of_plan in samples]
        predicted_s = [prediction.step_time_s for prediction in predictions]
        ratios = [p / m for p, m in zip(predicted_s, measured_s, strict=True)]
        scale = statistics.median(ratios)
        document |= {
            "time_rank_correlation": round(float(spearmanr(predicted_s, measured_s).statistic), 3),
            "median_predicted_over_measured_time": round(scale, 3),
            "largest_time_error_after_scaling": round(max(abs(ratio / scale - 1) for ratio in ratios), 3),
            "spread_of_measured_times": round(max(measured_s) / min(measured_s), 2),
        }
    return document


def render(row: dict[str, object]) -> str:
    if "failed" in row:
        return f"{row['target']:<20} {row['compile']:<7} failed: {row['failed']}"
    rank = row.get("time_rank_correlation", "–")
    return (
        f"{row['target']:<20} {row['compile']:<7} {row['plans']:>3} plans of {row['treatments']:>2} treatments: "
        f"peak error median {row['median_peak_error']:.4%}, largest {row['largest_peak_error']:.4%}; "
        f"rank correlation of times {rank}; {row['steps_to_profile']} steps to profile"
    )


if __name__ == "__main__":
    main()

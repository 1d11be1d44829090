"""Models of transformers and torchtitan: what is found in them, whether plans keep gradients and peaks are predicted.

Tiny models of random weights, eager on a CPU. Each is profiled as a search does it; then loss and every gradient under
each plan are compared with those without AC, and the plan's peak with the predicted one. A table on stderr, one line of
JSON last on stdout.

    python benchmarks/models.py                         all of transformers
    python benchmarks/models.py --library torchtitan    the others
    python benchmarks/models.py --fast                  the first one
    python benchmarks/models.py --save                  also results/models-LIBRARY.json and docs/models.md
"""

import argparse
import gc
import json
import sys
import warnings
from functools import partial
from pathlib import Path

import transformers.models.auto.modeling_auto  # noqa: F401  # many objects, which live bytes would be counted over
from architectures import ARCHITECTURES, TORCHTITAN_MODELS, plans_of
from results import save

from actune.cost.model import CostModel
from actune.cost.survey import begin_survey, extend_survey
from actune.errors import ActuneError
from actune.measure import Workload, measure_plan, open_device, profile_plan
from actune.measure.gradients import compare_gradients
from actune.plan import dump_plan
from actune.records import CompareGradients, MeasurePlan, Outcome

DOCUMENT = Path(__file__).parent.parent / "docs" / "models.md"
CHECKPOINTED = ("full", "sac", "mixed")
PLANS = ("none", *CHECKPOINTED)


def main():
    arguments = parse_arguments()
    gc.freeze()
    # torchtitan asks for autocast to float32 around routers, which a CPU does not have and says so at each step.
    warnings.filterwarnings("ignore", message="In CPU autocast, but the target dtype")
    models = {"transformers": ARCHITECTURES, "torchtitan": TORCHTITAN_MODELS}[arguments.library]
    if arguments.fast:
        models = models[:1]
    document = {"benchmark": f"models-{arguments.library}", "rows": examine_all(models)}
    if arguments.save:
        save(document["benchmark"], document)
        write_table(arguments.library, document["rows"])
    print(json.dumps(document))


def examine_all(models):
    """Rows, each printed as soon as it is there."""
    rows = []
    for model in models:
        rows.append(examine(model))
        print(render(rows[-1]), file=sys.stderr, flush=True)
    return rows


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", choices=("transformers", "torchtitan"), default="transformers")
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--save", action="store_true", help="write the results and the table of docs/models.md")
    return parser.parse_args()


def examine(architecture):
    """A row: layers, gradients and peaks of one architecture; a plan that is refused has the reason instead."""
    workload = Workload(architecture.spec, open_device("cpu"), seed=0)
    structure = workload.structure
    plans = plans_of(workload.model, structure)
    model = cost_model(workload, plans)
    return {
        "architecture": architecture.name,
        "config": architecture.config,
        "class": type(workload.model).__name__,
        "layers": len(structure.layer_fqns),
        "classes": {layer_class.name: len(layer_class.layer_fqns) for layer_class in structure.classes},
        "steps_to_profile": model.profile.steps_run,
        "plans": {name: examine_plan(workload, model, plan) for name, plan in plans.items()},
    }


def cost_model(workload, plans):
    """What a survey of the plans' treatments teaches, without times."""
    fqns = workload.structure.layer_fqns
    run = partial(profile_plan, workload)
    menus = {fqn: list(dict.fromkeys(plan.resolve(fqns)[fqn] for plan in plans.values())) for fqn in fqns}
    return CostModel(extend_survey(begin_survey(workload.structure, run, timed_steps=0), menus, run, timed_steps=0))


def examine_plan(workload, model, plan):
    """Predicted and measured peak, and how the gradients compare with those without AC."""
    toml = dump_plan(plan, with_provenance=False)
    prediction = model.predict(plan, workload.structure.layer_fqns)
    if prediction.refusal is not None:
        return {"refused": prediction.refusal.reason}
    try:
        measurement = measure_plan(workload, MeasurePlan(toml, None, None, timed_pairs=0)).measurement
        report = compare_gradients(workload, CompareGradients(toml, dump_plan(type(plan)(), with_provenance=False)))
    except ActuneError as error:
        return {"refused": str(error)}
    if measurement.outcome is not Outcome.OK:
        return {"refused": measurement.message}
    return {
        "predicted_peak_bytes": prediction.peak_bytes,
        "measured_peak_bytes": measurement.peak_bytes,
        "peak_error": prediction.peak_bytes / measurement.peak_bytes - 1,
        "gradients_equal": report.equal,
        "gradients_bitwise": report.bitwise,
        "gradient_error": report.largest_error,
    }


def render(row):
    plans = " ".join(f"{name} {_peak(plan):>26}" for name, plan in row["plans"].items())
    return f"{row['architecture']:<32} {row['layers']:>2} layers  gradients {_gradients(row):<22} peaks: {plans}"


def _gradients(row):
    """One word where all plans agree."""
    words = {name: _gradient_word(row["plans"][name]) for name in CHECKPOINTED}
    found = set(words.values())
    return found.pop() if len(found) == 1 else ", ".join(f"{name}: {word}" for name, word in words.items())


def _gradient_word(plan):
    if "refused" in plan:
        return "refused"
    if not plan["gradients_equal"]:
        return "differ"
    return "bitwise" if plan["gradients_bitwise"] else "within the target's own spread"


def _peak(plan):
    """The measured peak in bytes, and what the predicted one is off by."""
    if "refused" in plan:
        return "refused"
    off_bytes = plan["predicted_peak_bytes"] - plan["measured_peak_bytes"]
    off = "=" if off_bytes == 0 else f"{off_bytes:+,} B, {plan['peak_error']:+.3%}"
    return f"{plan['measured_peak_bytes']:,} ({off})"


def write_table(library, rows):
    """Puts the table between the library's marks in docs/models.md."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, begin, rest = text.partition(
        f"<!-- table of {library}: benchmarks/models.py --save --library {library} -->\n"
    )
    _, end, after = rest.partition("<!-- end of the table -->")
    assert begin, "the document has its marks"
    assert end, "the document has its marks"
    DOCUMENT.write_text(before + begin + table(rows) + end + after, encoding="utf-8")


def table(rows):
    """The rows in Markdown, and below them what was refused or missed."""
    lines = [
        f"| architecture | built as | layers by class | gradients | {' | '.join(PLANS)} |",
        "|---|---|---|---|" + "---:|" * len(PLANS),
    ]
    notes = []
    for row in rows:
        classes = ", ".join(f"{count} × `{name}`" for name, count in row["classes"].items())
        peaks = " | ".join(_peak(row["plans"][name]) for name in PLANS)
        lines.append(f"| {row['architecture']} | `{row['class']}` | {classes} | {_gradients(row)} | {peaks} |")
        notes += [
            f"- {row['architecture']}, `{name}`: refused. {plan['refused']}"
            for name, plan in row["plans"].items()
            if "refused" in plan
        ]
    measured = [plan for row in rows for plan in row["plans"].values() if "refused" not in plan]
    exact = sum(plan["peak_error"] == 0 for plan in measured)
    worst = max(abs(plan["peak_error"]) for plan in measured)
    lines += ["", f"{exact} of {len(measured)} peaks are predicted to the byte; the worst is off by {worst:.3%}.", ""]
    return "\n".join([*lines, *notes, *([""] if notes else [])])


if __name__ == "__main__":
    main()

"""The plan that `actune search` finds for a torchtitan model against torchtitan's own policies, applied by its code.

    python benchmarks/torchtitan_search.py --fast          # two minutes: a small dense model
    export OMP_NUM_THREADS=2 MALLOC_TOP_PAD_=268435456 MALLOC_TRIM_THRESHOLD_=34359738368 \\
           MALLOC_MMAP_THRESHOLD_=8589934592
    python benchmarks/torchtitan_search.py --save          # what results/torchtitan-search.json holds

The model is DeepSeek-V3's debug flavor with one dense layer and three mixtures; torchtitan has to be installed, see the
reference. The search runs from the command line and knows nothing of the others. Then torchtitan's `SelectiveAC` and
`FullAC` with their defaults (`torchtitan.distributed.activation_checkpoint`) are each applied to a fresh model of the
same target. Peaks are those of as many steps for each; times are taken in rounds whose order rotates, on the same
batches, from the same weights. With the variables glibc keeps the memory that a step frees: else the next step's page
faults are a fifth of its time, and most of the noise.

A table goes to stderr, one line of JSON to stdout. A ratio is the found plan's step time over torchtitan's, median of
the rounds, with its 95% interval: the found plan is faster where the interval ends below 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from functools import partial

import results
from peer_plans import toml_of
from peers import Found, search

from actune.measure import Workload, measure_plan, open_device
from actune.plan import Plan
from actune.records import MeasurePlan, StepSample
from actune.statistics import clock_of, median_step_time_s, relative_with_interval
from actune.units import format_bytes

TARGET = "torchtitan:deepseek_v3/debugmodel?layers=4&seq=128&batch=48"
FAST_TARGET = "torchtitan:llama3/debugmodel?layers=3&seq=256&batch=4"
POLICIES = ("selective", "full")
WARM_UP_STEPS = 1


class Contender:
    """A model of its own under one way to checkpoint it."""

    def __init__(self, name: str, target: str, plan: Plan, policy: str | None = None) -> None:
        """Args: policy: of torchtitan's, applied by torchtitan to the fresh model; the plan is then no AC."""
        self.name, self.plan = name, plan
        self.workload = Workload(target, open_device("cpu"), seed=0)
        if policy is not None:
            apply_policy(policy, self.workload.model)
        self.samples: list[StepSample] = []

    def peak_bytes(self, steps: int) -> int:
        """Of so many steps, each on a batch of its own. No other contender may be there yet."""
        request = MeasurePlan(toml_of(self.plan), None, None, timed_pairs=0, peak_steps=steps)
        measured = measure_plan(self.workload, request).measurement
        assert measured.peak_bytes is not None, f"{self.name}: {measured.message}"
        return measured.peak_bytes

    def start(self) -> None:
        self.workload.restart()
        self.workload.start_optimizer()
        with self.workload.under(self.plan):
            for step in range(WARM_UP_STEPS):
                self.workload.train_step(step)

    def run(self, step: int) -> None:
        self.workload.fetch_batch(step)
        with self.workload.under(self.plan):
            self.samples.append(self.workload.device.timed(partial(self.workload.train_step, step)))


def apply_policy(name: str, model) -> None:
    from torchtitan.distributed.activation_checkpoint import FullAC, SelectiveAC

    config = {"selective": SelectiveAC.Config, "full": FullAC.Config}[name]()
    config.build(dump_folder="").apply(model)


def contest(target: str, found: Found, rounds: int, steps: int) -> dict[str, dict]:
    """Peaks first, one after the other, as each counts all that is alive in the process; then the rounds."""
    rows: dict[str, dict] = {}
    ways = [("found", found.plan, None), *((f"torchtitan {policy}", Plan(), policy) for policy in POLICIES)]
    for name, plan, policy in ways:
        rows[name] = {"peak_bytes": Contender(name, target, plan, policy).peak_bytes(steps)}
    contenders = [Contender(name, target, plan, policy) for name, plan, policy in ways]
    for contender in contenders:
        contender.start()
    for number in range(rounds):
        for offset in range(len(contenders)):
            contenders[(number + offset) % len(contenders)].run(WARM_UP_STEPS + number)
    clock = clock_of(contenders[0].workload.device.environment())
    own = contenders[0].samples
    for contender in contenders:
        row = rows[contender.name]
        row["step_time_s"] = median_step_time_s(contender.samples)
        if contender.samples is not own:
            numbers = relative_with_interval(own, contender.samples, clock)
            row["ratio"], row["low"], row["high"] = (round(number, 4) for number in numbers)
    return rows


def main() -> None:
    arguments = parse_arguments()
    # torchtitan asks for autocast to float32 around routers, which a CPU does not have and says so at each step.
    warnings.filterwarnings("ignore", message="In CPU autocast, but the target dtype")
    start_s = time.perf_counter()
    found = search(arguments.target, arguments.budget, None, arguments.trials)
    if isinstance(found, str):
        raise SystemExit(found)
    rows = contest(arguments.target, found, arguments.rounds, arguments.steps)
    own, selective = rows["found"], rows["torchtitan selective"]
    document = {
        "benchmark": "torchtitan-search",
        "fast": arguments.fast,
        "target": arguments.target,
        "budget": arguments.budget,
        "budget_bytes": found.budget_bytes,
        "plan": found.plan.describe(),
        "plan_toml": toml_of(found.plan),
        "trials": found.trials,
        "search_s": round(found.search_s, 1),
        "gradients_equal": found.gradients_equal,
        "rounds": arguments.rounds,
        "steps": arguments.steps,
        "rows": rows,
        "fits": own["peak_bytes"] <= found.budget_bytes,
        "no_higher_peak": own["peak_bytes"] <= selective["peak_bytes"],
        "faster": selective["high"] < 1,
        "took_s": round(time.perf_counter() - start_s),
    }
    print(render(document), file=sys.stderr)
    if arguments.save:
        results.save("torchtitan-search", document)
    print(json.dumps(document))


def render(document: dict) -> str:
    lines = [
        f"{document['target']}, {document['budget']} = {format_bytes(document['budget_bytes'])}: "
        f"{document['trials']} trials in {document['search_s']} s",
        f"  {document['plan']}",
    ]
    for name, row in document["rows"].items():
        ratio = f"{row['ratio']:.3f} ({row['low']:.3f}–{row['high']:.3f})" if "ratio" in row else ""
        lines.append(
            f"    {name:<22} {format_bytes(row['peak_bytes']):>10} {row['step_time_s']:8.3f} s  {ratio}".rstrip()
        )
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="a small dense model, few trials and rounds")
    parser.add_argument("--target", default=TARGET)
    parser.add_argument("--budget", default="60%", help="as the search takes it")
    parser.add_argument("--trials", type=int, default=3, help="of the search, at most")
    parser.add_argument("--rounds", type=int, default=11, help="interleaved rounds that time the plan and the policies")
    parser.add_argument("--steps", type=int, default=4, help="steps that peaks are taken of")
    parser.add_argument("--save", action="store_true", help="write results/torchtitan-search.json")
    arguments = parser.parse_args()
    if arguments.fast:
        arguments.target, arguments.budget = FAST_TARGET, "75%"
        arguments.trials, arguments.rounds, arguments.steps = 4, 9, 3
    return arguments


if __name__ == "__main__":
    main()

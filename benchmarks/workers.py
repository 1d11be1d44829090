"""What a second worker on the same processor is worth, and what it does to times: `python benchmarks/workers.py`.

Trials without timing (over the budget, out of memory, or nothing to compare with) run side by side; timed ones take
turns. In each round the same trials run with one worker, with two that take turns, and with two that don't, in an order
that rotates, so that the machine's drift cancels. One thread computes in each worker.

`memory_only` and `timed`: how many times sooner two workers finish the trials than one (median over rounds).
`ratio_spread`: interquartile range over median of the timed pairs' ratios.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import results

from actune.engine import LocalEngine
from actune.plan import Plan, Rule, Treatment, dump_plan
from actune.records import LoadTarget, MeasurePlan, Outcome

TARGET = "dense-tiny"
PAIRS = 5
ALONE, TURNS, DISTURBED = "one worker", "two, taking turns", "two, not taking turns"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--trials", type=int, default=8, help="in each round and way")
    parser.add_argument("--fast", action="store_true", help="two rounds of four trials")
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results/workers.json")
    options = parser.parse_args()
    rounds, trials = (2, 4) if options.fast else (options.rounds, options.trials)
    document = compared(rounds, trials)
    print(json.dumps({"workers": document}))
    if options.save:
        results.save("workers", document)


def compared(rounds, trials):
    os.environ["OMP_NUM_THREADS"] = "1"
    none, full = dump_plan(Plan()), dump_plan(Plan((Rule(("*",), Treatment("full")),)))
    memory_only = MeasurePlan(none, None, None, timed_pairs=0)
    timed = MeasurePlan(full, none, None, timed_pairs=PAIRS)
    load = LoadTarget(TARGET, "cpu", 0)
    took_s = {kind: {way: [] for way in (ALONE, TURNS, DISTURBED)} for kind in ("memory_only", "timed")}
    ratios = {way: [] for way in (ALONE, TURNS, DISTURBED)}
    with tempfile.TemporaryDirectory() as folder:
        engines = {}
        for way in (ALONE, TURNS, DISTURBED):
            workers = 1 if way == ALONE else 2
            engines[way] = LocalEngine(load, workers=workers, timeout_s=600.0, log_folder=Path(folder) / way)
            if way == DISTURBED:
                engines[way]._share_a_processor = False
            engines[way].load()
            run(engines[way], [memory_only] * workers)  # starts all workers
        try:
            for number in range(rounds):
                order = list(engines)[number % 3 :] + list(engines)[: number % 3]
                for way in order:
                    took_s["memory_only"][way].append(run(engines[way], [memory_only] * trials)[0])
                    duration_s, measurements = run(engines[way], [timed] * trials)
                    took_s["timed"][way].append(duration_s)
                    for measurement in measurements:
                        ratios[way] += [
                            pair.plan.step_time_s / pair.reference.step_time_s for pair in measurement.pairs
                        ]
                print(f"round {number + 1} of {rounds}", file=sys.stderr)
        finally:
            for engine in engines.values():
                engine.close()
    document = {"target": TARGET, "rounds": rounds, "trials": trials}
    for kind, of_ways in took_s.items():
        for way, key in ((TURNS, kind), (DISTURBED, f"{kind}_without_turns")):
            speedups = [alone / other for alone, other in zip(of_ways[ALONE], of_ways[way], strict=True)]
            document[key] = round(statistics.median(speedups), 2)
    document["ratio_spread"] = {way: spread(of_way) for way, of_way in ratios.items()}
    return document


def run(engine, requests):
    """How long it takes until all have ended, and their measurements."""
    begin_s = time.monotonic()
    measurements = [future.result() for future in [engine.submit(request) for request in requests]]
    duration_s = time.monotonic() - begin_s
    assert all(measurement.outcome is Outcome.OK for measurement in measurements)
    return duration_s, measurements


def spread(ratios):
    low, middle, high = statistics.quantiles(ratios, n=4)
    return round((high - low) / middle, 4)


if __name__ == "__main__":
    main()

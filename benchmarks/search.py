"""The main job on the built-in models: the plan found against every preset, in the search's own interleaved rounds.

Prints one JSON line. For each case: how many trials were measured, the best plan's step time relative to each preset
(medians of rounds; below 1 is faster).

    python benchmarks/search.py            # fast: moe-tiny at 70%
    python benchmarks/search.py --full     # both models, three budgets each
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time

FAST = [("moe-tiny", "70%")]
FULL = [(target, budget) for target in ("dense-tiny", "moe-tiny") for budget in ("60%", "70%", "85%")]


def run_case(target, budget, trials):
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "actune", "search", "--target", target, "--budget", budget, "--study", "s"]
        command += ["--trials", str(trials), "--storage", f"sqlite:///{folder}/studies.db", "--json"]
        start_s = time.perf_counter()
        finished = subprocess.run(command, check=True, capture_output=True, text=True)
        search_s = time.perf_counter() - start_s
    document = json.loads(finished.stdout)
    best = document["best"]
    return {
        "target": target,
        "budget": budget,
        "budget_bytes": document["budget_bytes"],
        "trials": len(document["trials"]),
        "pruned": sum(trial["state"] == "pruned" for trial in document["trials"]),
        "search_s": round(search_s, 1),
        "best": best["plan"],
        "best_peak_bytes": best["peak_bytes"],
        "gradients_equal": best["gradients_equal"],
        "relative_to_full": round(best["relative_step_time"], 4),
        "relative_to_full_interval": [
            round(best["relative_step_time_low"], 4),
            round(best["relative_step_time_high"], 4),
        ],
        "relative_to_preset": {
            preset["plan"]: round(best["relative_step_time"] / preset["relative_step_time"], 4)
            for preset in document["presets"]
            if preset["outcome"] == "ok"
        },
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="both models at three budgets each")
    parser.add_argument("--trials", type=int, default=14)
    arguments = parser.parse_args()
    cases = [run_case(target, budget, arguments.trials) for target, budget in (FULL if arguments.full else FAST)]
    print(json.dumps({"benchmark": "search", "cases": cases}))


if __name__ == "__main__":
    main()

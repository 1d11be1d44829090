"""The plan that `actune search` finds against what others would run, all within the same measured peak, side by side.

    python benchmarks/peers.py --fast                      # under a minute: one small target, eager
    python benchmarks/peers.py --save                      # what results/peers.json holds: half an hour
    python benchmarks/peers.py --targets dense-tiny --budgets 70% --compiled

Peers: every preset of the space, the cost model's greedy solver, PyTorch's AutoSAC (`peer_autosac`), full AC on the
first k layers with the smallest k that fits; where plans compile, also the compiler's own `activation_memory_budget`,
for which the search gets a space with compiled plans (`spaces/`). See `peer_plans` for how each comes to fit.

A table goes to stderr, one line of JSON to stdout. A ratio is the winner's step time over the peer's, median of
interleaved rounds, with its 95% interval: the winner is at least as fast where the interval reaches down to 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import results
from peer_plans import AutoSacPeer, Peaks, Peer, Solvers, full_on_first, memory_budget, presets, toml_of

from actune.config import load_space, space_for
from actune.cost.op_survey import trace_classes
from actune.cost.outlook import Outlook
from actune.engine import LocalEngine
from actune.errors import ActuneError
from actune.plan import Plan, parse_plan
from actune.records import LoadTarget, MeasurePlan, MeasureRounds
from actune.search.space import ModelSpace
from actune.statistics import clock_of, relative_with_interval
from actune.units import format_bytes

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples" / "hf"
TARGETS = {
    "dense-tiny": "dense-tiny",
    "moe-tiny": "moe-tiny",
    "llama": f"hf:{EXAMPLES}/llama-tiny.json",
    "qwen3-moe": f"hf:{EXAMPLES}/qwen3-moe-tiny.json",
    "smallest": "dense-tiny?layers=3&seq=128",
}
FULL = ["dense-tiny", "moe-tiny", "llama", "qwen3-moe"]
COMPILED_SPACES = {
    "dense-tiny": "compiled-dense",
    "llama": "compiled-dense",
    "moe-tiny": "compiled-moe",
    "qwen3-moe": "compiled-moe",
}
MODEL_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)  # one graph compiles for half a minute and more
AGAIN = 3  # times the rounds, for a plan that seems to be faster than the winner
LAYER_SHARES = tuple(tenths / 10 for tenths in range(1, 10))
NO_PLAN_FITS = 3  # exit code of the search
INFEASIBLE = "no plan of the space fits"


@dataclass(frozen=True)
class Found:
    """What a search found."""

    budget_bytes: int
    plan: Plan
    peak_bytes: int
    trials: int
    gradients_equal: bool
    search_s: float


def search(target: str, budget: str, space: Path | None, trials: int) -> Found | str:
    """Runs the command line with a database of its own. Why there is no plan, if none fits."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "actune", "search", "--target", target, "--budget", budget, "--study", "s"]
        command += ["--trials", str(trials), "--storage", f"sqlite:///{folder}/studies.db", "--json"]
        command += [] if space is None else ["--space", str(space)]
        start_s = time.perf_counter()
        finished = subprocess.run(command, capture_output=True, text=True)
        search_s = time.perf_counter() - start_s
    if finished.returncode == NO_PLAN_FITS:
        return f"{INFEASIBLE}: {finished.stderr.strip().splitlines()[-1]}"
    if finished.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{finished.stderr}")
    document = json.loads(finished.stdout)
    best = document["best"]
    plan = parse_plan(best["plan_toml"])
    return Found(
        document["budget_bytes"],
        Plan(plan.rules, plan.compile),
        best["peak_bytes"],
        len(document["trials"]),
        best["gradients_equal"],
        search_s,
    )


class Contest:
    """One target: its peers' peaks, and the parts of their plans that do not depend on the budget, are found once."""

    def __init__(self, name: str, engine: LocalEngine, arguments: argparse.Namespace) -> None:
        self.name, self.target, self.engine, self.arguments = name, TARGETS[name], engine, arguments
        loaded = engine.load()
        self.structure, self.clock = loaded.target.structure, clock_of(loaded.environment)
        self.peaks, self.outlook = Peaks(engine), Outlook(loaded.target.structure, engine.profile)
        self.autosac = AutoSacPeer(self.target, self.structure, engine)
        self.traced = None
        self.solvers: dict[str, Solvers] = {}

    def row(self, budget: str, space_name: str) -> dict:
        """One budget: searches, finds the peers' plans, and times all that fit."""
        path = None if space_name == "eager" else HERE / "spaces" / f"{space_name}.yaml"
        space = ModelSpace(load_space(space_for(self.structure) if path is None else str(path)), self.structure)
        row = {"target": self.name, "budget": budget, "space": space_name}
        found = search(self.target, budget, path, self.arguments.trials)
        if isinstance(found, str):
            return row | {"failed": found}
        start_s = time.perf_counter()
        peers = self.peers(space_name, space, found.budget_bytes)
        highest_bytes = max(found.peak_bytes, self.highest_peak_bytes(found.plan))
        fitting = [peer for peer in peers if peer.fits(found.budget_bytes)]
        of_presets = [peer.plan for peer in fitting if peer.is_preset]
        solvers = self.solvers[space_name]
        row |= {
            "budget_bytes": found.budget_bytes,
            "trials": found.trials,
            "search_s": round(found.search_s, 1),
            "winner": {
                "plan": found.plan.describe(),
                "peak_bytes": found.peak_bytes,
                "highest_peak_bytes": highest_bytes,
                "steps": self.arguments.steps,
                "fits": highest_bytes <= found.budget_bytes,
                "gradients_equal": found.gradients_equal,
            },
            "predicted_over_best_preset": solvers.predicted_room(found.budget_bytes, of_presets),
            "peers": self.timed(found, peers),
        }
        ratios = [peer for peer in row["peers"] if "ratio" in peer]
        row["at_least_as_fast"] = all(peer["low"] <= 1 for peer in ratios)
        row["over_best_preset"] = max((peer["ratio"] for peer in ratios if peer["is_preset"]), default=None)
        row["over_best_peer"] = max((peer["ratio"] for peer in ratios), default=None)
        row["peers_s"] = round(time.perf_counter() - start_s, 1)
        return row

    def peers(self, space_name: str, space: ModelSpace, budget_bytes: int) -> list[Peer]:
        peers = presets(space.presets, self.structure, self.peaks)
        solvers = self.solvers.setdefault(space_name, Solvers(space, self.structure, self.outlook, self.trace))
        peers.append(solvers.greedy(budget_bytes, self.peaks))
        peers.append(self.autosac.peer(budget_bytes, self.peaks))
        peers.append(full_on_first(self.structure, budget_bytes, self.peaks))
        if space_name != "eager":
            peers.append(full_on_first(self.structure, budget_bytes, self.peaks, "layer"))
            peers.append(memory_budget("layer", LAYER_SHARES, self.structure, budget_bytes, self.peaks))
            peers.append(memory_budget("model", MODEL_SHARES, self.structure, budget_bytes, self.peaks))
        return peers

    def highest_peak_bytes(self, plan: Plan) -> int:
        """Of so many steps, each on a batch of its own."""
        request = MeasurePlan(toml_of(plan), None, None, timed_pairs=0, peak_steps=self.arguments.steps)
        measured = self.engine.measure(request)
        assert measured.peak_bytes is not None, f"the winner ran in the search, but not again: {measured.message}"
        return measured.peak_bytes

    def trace(self):
        """Op traces of a layer of each class."""
        if self.traced is None:
            self.traced = trace_classes(self.structure, self.engine.trace_layers)
        return self.traced

    def timed(self, found: Found, peers: list[Peer]) -> list[dict]:
        """The peers as they are kept, those that fit with their ratios. A plan that several run is timed once.

        Of dozens of plans that are as fast as the winner some seem to be faster by chance. Those are timed again with
        the winner alone, in more rounds, and that counts; what they seemed to be is kept beside it.
        """
        rivals = dict.fromkeys(p.plan for p in peers if p.fits(found.budget_bytes) and p.plan != found.plan)
        first = self.ratios(found.plan, list(rivals), self.arguments.rounds)
        contested = [plan for plan, (_, low, _) in first.items() if low > 1]
        again = self.ratios(found.plan, contested, AGAIN * self.arguments.rounds) if contested else {}
        rows = []
        for peer in peers:
            fits = peer.fits(found.budget_bytes)
            row = {"name": peer.name, "plan": peer.plan.describe() if peer.plan else None}
            row |= {"is_preset": peer.is_preset, "peak_bytes": peer.peak_bytes, "fits": fits, "note": peer.note}
            if fits:
                ratio, low, high = (first | again).get(peer.plan, (1.0, 1.0, 1.0))
                row |= {"same_plan": peer.plan == found.plan, "ratio": ratio, "low": low, "high": high}
            if peer.plan in again:
                row["at_first"] = first[peer.plan]
            rows.append(row)
        return rows

    def ratios(self, plan: Plan, rivals: list[Plan], rounds: int) -> dict[Plan, tuple[float, float, float]]:
        """The plan's time over each rival's, with the interval's ends."""
        tomls = tuple(toml_of(each) for each in (plan, *rivals))
        own, *others = self.engine.measure_rounds(MeasureRounds(tomls, rounds)).samples
        return {
            rival: tuple(round(number, 4) for number in relative_with_interval(own, samples, self.clock))
            for rival, samples in zip(rivals, others, strict=True)
        }


def render(row: dict) -> str:
    head = f"{row['target']}, {row['space']} space, {row['budget']}"
    if "failed" in row:
        return f"{head}: {row['failed']}"
    winner = row["winner"]
    lines = [
        f"{head} = {format_bytes(row['budget_bytes'])}: {row['trials']} trials in {row['search_s']} s, peers in "
        f"{row['peers_s']} s",
        f"  winner {winner['plan']}",
        f"    highest peak of {winner['steps']} steps {format_bytes(winner['highest_peak_bytes'])}"
        f"{'' if winner['fits'] else ' DOES NOT FIT'}; "
        f"{'at least as fast as every peer' if row['at_least_as_fast'] else 'SLOWER THAN A PEER'}",
    ]
    for peer in row["peers"]:
        peak = "–" if peer["peak_bytes"] is None else format_bytes(peer["peak_bytes"])
        ratio = "does not fit" if peer["peak_bytes"] is not None and not peer["fits"] else ""
        if peer["fits"]:
            ratio = f"{peer['ratio']:.3f} ({peer['low']:.3f}–{peer['high']:.3f})"
            ratio = "same plan" if peer["same_plan"] else ratio + (" again" if "at_first" in peer else "")
        lines.append(f"    {peer['name']:<36.36} {peak:>10}  {ratio:<28} {peer['note'][:150]}".rstrip())
    return "\n".join(lines)


def main() -> None:
    arguments = parse_arguments()
    start_s = time.perf_counter()
    rows = []
    for name in arguments.targets:
        with tempfile.TemporaryDirectory() as folder:
            load = LoadTarget(TARGETS[name], "cpu", 0)
            with LocalEngine(load, workers=1, timeout_s=1800, log_folder=Path(folder)) as engine:
                contest = Contest(name, engine, arguments)
                for space in spaces_of(name, arguments):
                    for budget in arguments.budgets:
                        try:
                            rows.append(contest.row(budget, space))
                        except ActuneError as error:
                            rows.append({"target": name, "budget": budget, "space": space, "failed": str(error)})
                        print(render(rows[-1]), file=sys.stderr, flush=True)
                        if arguments.save:
                            results.save("peers", document_of(rows, arguments, start_s))
    print(json.dumps(document_of(rows, arguments, start_s)))


def spaces_of(target: str, arguments: argparse.Namespace) -> list[str]:
    compiled = [COMPILED_SPACES[target]] if target in arguments.compiled else []
    return (["eager"] if arguments.eager else []) + compiled


def document_of(rows: list[dict], arguments: argparse.Namespace, start_s: float) -> dict:
    return {
        "benchmark": "peers",
        "fast": arguments.fast,
        "rounds": arguments.rounds,
        "all_fit": all("winner" in row and row["winner"]["fits"] for row in rows),
        "all_at_least_as_fast": all(row.get("at_least_as_fast", False) for row in rows),
        "took_s": round(time.perf_counter() - start_s),
        "rows": rows,
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="one small target at one budget, eager")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=FULL)
    parser.add_argument("--budgets", nargs="+", default=["60%", "70%", "85%"], help="as the search takes them")
    parser.add_argument(
        "--compiled",
        nargs="*",
        choices=COMPILED_SPACES,
        default=["dense-tiny", "llama"],
        help="targets that are searched in a space with compiled plans too; the others of them compile far longer",
    )
    parser.add_argument("--no-eager", dest="eager", action="store_false", help="only those spaces")
    parser.add_argument("--trials", type=int, default=14, help="of each search, at most")
    parser.add_argument("--rounds", type=int, default=21, help="interleaved rounds that time winner and peers")
    parser.add_argument("--steps", type=int, default=8, help="steps that the winner's highest peak is taken of")
    parser.add_argument("--save", action="store_true", help="write results/peers.json")
    arguments = parser.parse_args()
    if arguments.fast:
        arguments.targets, arguments.budgets, arguments.compiled = ["smallest"], ["75%"], []
        arguments.trials, arguments.rounds, arguments.steps = 4, 9, 3
    return arguments


if __name__ == "__main__":
    main()

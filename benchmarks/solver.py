"""How long the solvers take for stacks of different layers, and how good their answers are.

A table goes to stderr; the last line on stdout is one JSON document. Problems are seeded: every layer differs from all
others in size, time and in what its eight options keep. `sac_milp` is PyTorch's own solver, of
`torch.distributed._tools`; it gets the same statistics in the same run, see `MilpStack`.

    python benchmarks/solver.py --fast                      # under half a minute
    python benchmarks/solver.py --save                      # what results/solver.json holds
    python benchmarks/solver.py --sac-milp-layers 16,32,64  # 64 takes sac_milp seconds
"""

import argparse
import itertools
import json
import random
import statistics
import sys
import time
from dataclasses import dataclass

import results

from actune.cost.solver import (
    LayerChoices,
    Option,
    Problem,
    solve_exact,
    solve_exhaustive,
    solve_frontier,
    solve_greedy,
    solve_ilp,
)
from actune.cost.solver.feasible import smallest_peak

SIZES = (16, 32, 64, 128, 256)
EXHAUSTIVE_LAYERS = 5  # 8^5 choices
SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)  # budgets, between the smallest peak and that of the fastest choice
OPTIONS = 8
FINE_OPTIONS = 65
MODULES_BELOW = 12  # each unit, in sac_milp's graph: as many as torchtitan's Llama block has
SAC_MILP_LIMIT_S = 180.0  # set in PyTorch's source, as is a gap of 5% at which it stops
MS_PER_S = 1e3


def stack_problem(rng, layer_count):
    """Layers with eight options each, from keeping all to keeping next to nothing, and the logits at the end."""
    layers = []
    for number in range(layer_count):
        all_bytes, base_s = rng.randint(200_000_000, 2_000_000_000), rng.uniform(0.005, 0.05)
        shares = [1.0, *sorted((rng.uniform(0.05, 0.95) for _ in range(OPTIONS - 2)), reverse=True), 0.02]
        options = tuple(
            Option(
                int(all_bytes * share),
                int(all_bytes * rng.uniform(1, 1.3)),
                base_s * (1 + 0.33 * (1 - share) ** 1.5 * rng.uniform(0.8, 1.2)),
            )
            for share in shares
        )
        after_bytes = 4_000_000_000 if number == layer_count - 1 else rng.randint(0, 50_000_000)
        layers.append(LayerChoices(options, after_bytes))
    return Problem(tuple(layers), 1_000_000_000, 0.05)


def budgets_of(problem, shares=SHARES):
    lowest_bytes = smallest_peak(problem)[0]
    fastest = [min(range(len(layer.options)), key=lambda n: layer.options[n].time_s) for layer in problem.layers]
    highest_bytes = problem.peak_bytes(fastest)
    return [lowest_bytes + int(share * (highest_bytes - lowest_bytes)) for share in shares]


@dataclass(frozen=True)
class Seconds:
    """How long something took, and how much of that this process was at work: less, where others took the core away."""

    wall: float
    process: float


def timed(solve, *arguments, **options):
    start_s, process_start_s = time.perf_counter(), time.process_time()
    solution = solve(*arguments, **options)
    return solution, Seconds(time.perf_counter() - start_s, time.process_time() - process_start_s)


def summary(seconds):
    return {
        "solve_s": statistics.median(each.wall for each in seconds),
        "slowest_s": max(each.wall for each in seconds),
        "process_s": statistics.median(each.process for each in seconds),
        "slowest_process_s": max(each.process for each in seconds),
    }


def solvers_at(layer_count, seeds, ilp_limit_s, frontier_runs):
    """Times and gaps over seeds and budgets; the integer program and the frontier for the first seed only."""
    runs = {"exact": [], "greedy": [], "ilp": [], "exhaustive": []}
    for seed in range(seeds):
        problem = stack_problem(random.Random(seed), layer_count)
        for budget_bytes in budgets_of(problem):
            optimum, exact_s = timed(solve_exact, problem, budget_bytes)
            runs["exact"].append((exact_s, optimum.gap, 0.0))
            found, greedy_s = timed(solve_greedy, problem, budget_bytes)
            runs["greedy"].append((greedy_s, found.gap, found.time_s / optimum.time_s - 1))
            if layer_count <= EXHAUSTIVE_LAYERS and seed == 0:
                truth, exhaustive_s = timed(solve_exhaustive, problem, budget_bytes)
                assert (truth.time_s, truth.peak_bytes) == (optimum.time_s, optimum.peak_bytes)
                runs["exhaustive"].append((exhaustive_s, 0.0, 0.0))
        if seed == 0 and ilp_limit_s:
            budget_bytes = budgets_of(problem)[len(SHARES) // 2]
            found, ilp_s = timed(solve_ilp, problem, budget_bytes, limit_s=ilp_limit_s)
            runs["ilp"].append((ilp_s, found.gap, found.time_s / solve_exact(problem, budget_bytes).time_s - 1))
    problem = stack_problem(random.Random(0), layer_count)
    frontiers = [timed(solve_frontier, problem, points=200) for _ in range(frontier_runs)]
    row = {"layers": layer_count, "options": OPTIONS, "problems": len(runs["exact"])}
    for solver, measured in runs.items():
        if measured:
            seconds, gaps, excess = zip(*measured, strict=True)
            row[solver] = summary(seconds) | {"largest_gap": max(gaps), "largest_excess_over_exact": max(excess)}
    if runs["ilp"]:
        row["ilp"]["hit_limit"] = row["ilp"]["slowest_s"] >= ilp_limit_s
    row["frontier"] = summary([seconds for _, seconds in frontiers]) | {
        "points": len(frontiers[0][0]),
        "largest_gap": max(solution.gap for solution in frontiers[0][0]),
    }
    return row


@dataclass(frozen=True)
class Unit:
    """What sac_milp knows of one unit that may be checkpointed.

    `curve`: shares of its ops' bytes that are discarded, each with the share of the recomputation that this costs, from
    (0, 0) to (1, 1). sac_milp may choose any share in between, on the lines through these points.
    """

    held_bytes: int  # without AC (act_fw_per_module)
    sac_bytes: int  # of all ops' outputs (sac_memory), some of which are not held without AC
    output_bytes: int
    gradient_bytes: int  # of activations, while it runs backward (act_grad_per_module)
    parameter_bytes: int
    recompute_s: float
    curve: tuple[tuple[float, float], ...]

    @classmethod
    def random(cls, rng):
        held_bytes = rng.randint(200_000_000, 2_000_000_000)
        widths = [rng.uniform(0.5, 1.5) for _ in range(6)]
        slopes = sorted(rng.uniform(0.1, 4) for _ in widths)  # sac_milp's lines must be convex
        shares = [0.0, *itertools.accumulate(width / sum(widths) for width in widths)]
        costs = [0.0, *itertools.accumulate(width * slope for width, slope in zip(widths, slopes, strict=True))]
        return cls(
            held_bytes,
            int(held_bytes * rng.uniform(1.05, 1.3)),
            rng.randint(8_000_000, 64_000_000),
            int(held_bytes * rng.uniform(0.1, 0.4)),
            rng.randint(50_000_000, 500_000_000),
            rng.uniform(0.003, 0.03),
            tuple((share / shares[-1], cost / costs[-1]) for share, cost in zip(shares, costs, strict=True)),
        )

    def lines(self):
        """Slope and intercept of the curve's lines."""
        for (left, low), (right, high) in itertools.pairwise(self.curve):
            slope = (high - low) / (right - left)
            yield slope, low - slope * left

    def shares(self, count):
        """So many shares up to 1, evenly spread: the smallest one just discards what is not held without AC anyway."""
        free = 1 - self.held_bytes / self.sac_bytes
        return [free + (1 - free) * (number + 1) / count for number in range(count)]

    def cost_s(self, share):
        return self.recompute_s * max(slope * share + intercept for slope, intercept in self.lines())


class MilpStack:
    """One set of statistics, as sac_milp's graph of modules and as a problem of this solver.

    sac_milp bounds, for each unit's backward, what is held then: all that the units up to it hold without AC, less what
    those before it discard, and gradients. That is K_{i-1} + need_i here, with a need that no option changes; the root
    module, whose backward begins when all units are done, is what runs after the last layer. So both have the same peak
    for the same decisions, and `problem.peak_bytes` and `problem.time_ps` judge both.

    sac_milp decides on a share of bytes, any number; a problem here has options. So the curve is cut into options
    twice: eight for each unit, as many as a menu has, and `fine` ones, which come so close to any number that both
    solvers have the same to choose from. A decision of sac_milp becomes the option that discards at least as much: its
    `peak_bytes` and `recompute_s` are those of that choice. What it reports itself is `claimed`.
    """

    def __init__(self, rng, layer_count, alike):
        one = Unit.random(rng)
        self.units = [one if alike else Unit.random(rng) for _ in range(layer_count)]
        self.names = [f"layers_{number}" for number in range(layer_count)]
        self.root_gradient_bytes = 2_000_000_000

    def held_up_to(self, number):
        return sum(unit.held_bytes + unit.output_bytes for unit in self.units[: number + 1])

    def gradients_behind(self, number):
        return sum(unit.parameter_bytes for unit in self.units[number + 1 :])

    def graph(self):
        from torch.distributed._tools.ilp_utils import parse_module_info

        parameter_bytes = sum(unit.parameter_bytes for unit in self.units)
        last = len(self.units) - 1
        blank = {"grad_per_module": 0, "act_bw_per_module": 0, "input_per_module": 0, "output_per_module": 0}
        blank |= {"fw_runtime_per_module": 0.0, "bw_runtime_per_module": 0.0, "tradeoff_curve": {}, "breakpoints": []}
        leaf = {"is_leaf": True, "sac_runtime": 0.0, "sac_memory": 0, "n_segments": 0, "slopes": [], "intercepts": []}
        root = {"fqn": "root", "param_per_module": parameter_bytes, "grad_total": 0}
        root |= {"act_fw_per_module": self.held_up_to(last), "act_total": self.held_up_to(last)}
        root |= {"act_grad_per_module": self.root_gradient_bytes}
        modules = [{**blank, **leaf, **root}]  # a leaf to sac_milp is what is not to be checkpointed
        below = {name: [f"{name}.{number}" for number in range(MODULES_BELOW)] for name in self.names}
        for number, unit in enumerate(self.units):
            slopes, intercepts = zip(*unit.lines(), strict=True)
            modules.append(
                {
                    **blank,
                    "fqn": self.names[number],
                    "param_per_module": unit.parameter_bytes,
                    "grad_total": self.gradients_behind(number),
                    "act_fw_per_module": unit.held_bytes,
                    "act_grad_per_module": unit.gradient_bytes,
                    "act_total": self.held_up_to(number),
                    "is_leaf": False,
                    "sac_runtime": unit.recompute_s * MS_PER_S,
                    "sac_memory": unit.sac_bytes,
                    "n_segments": len(slopes),
                    "slopes": slopes,
                    "intercepts": intercepts,
                }
            )
            # Modules below a unit, as every model has: none binds before the unit itself does.
            for place, name in enumerate(below[self.names[number]], start=1):
                held_bytes = self.held_up_to(number - 1) + unit.held_bytes * place // MODULES_BELOW
                own = {"fqn": name, "param_per_module": unit.parameter_bytes // MODULES_BELOW}
                own |= {"grad_total": self.gradients_behind(number), "act_total": held_bytes, "act_grad_per_module": 0}
                own |= {"act_fw_per_module": unit.held_bytes // MODULES_BELOW}
                modules.append({**blank, **leaf, **own})
        before = ["root", *(each for name in self.names for each in (name, *below[name]))]
        after = [*(each for name in self.names for each in (*below[name], name)), "root"]
        order = {
            "fw_pre_order": before,
            "fw_post_order": after,
            "bw_pre_order": after[::-1],
            "bw_post_order": before[::-1],
        }
        return parse_module_info({"mod_order": order, "mod_stats": modules})

    def problem(self, option_count):
        parameter_bytes = sum(unit.parameter_bytes for unit in self.units)
        layers = []
        for number, unit in enumerate(self.units):
            outputs_bytes = sum(each.output_bytes for each in self.units[: number + 1])
            need_bytes = unit.held_bytes + outputs_bytes + unit.gradient_bytes
            need_bytes += parameter_bytes + self.gradients_behind(number)
            without = Option(unit.held_bytes, need_bytes, 0.0)
            options = [
                Option(round(unit.sac_bytes * (1 - share)), need_bytes, unit.cost_s(share))
                for share in unit.shares(option_count - 1)
            ]
            is_last = number == len(self.units) - 1
            after_bytes = outputs_bytes + self.root_gradient_bytes + parameter_bytes if is_last else 0
            layers.append(LayerChoices((without, *options), after_bytes))
        return Problem(tuple(layers), 0, 0.0)

    def choice_of(self, decisions, option_count):
        """The options that discard at least the shares that sac_milp decided on."""
        choice = []
        for name, unit in zip(self.names, self.units, strict=True):
            shares = unit.shares(option_count - 1)
            # sac_milp rounds to 4 digits.
            discarding = [n for n, share in enumerate(shares, start=1) if share >= decisions.get(name, 0) - 1e-4]
            choice.append(discarding[0] if name in decisions else 0)
        return tuple(choice)


def sac_milp_at(layer_count, alike):
    from torch.distributed._tools.sac_ilp import sac_milp

    stack = MilpStack(random.Random(0), layer_count, alike)
    (budget_bytes,) = budgets_of(stack.problem(OPTIONS), (0.5,))
    (decisions, claimed_ms, claimed_peak_bytes), milp = timed(
        sac_milp, stack.graph(), budget_bytes / 2**30, ac_units=stack.names
    )
    row = {"layers": layer_count, "alike": alike, "budget_bytes": budget_bytes, "solve_s": milp.wall}
    row["hit_limit"] = milp.wall >= SAC_MILP_LIMIT_S
    found = claimed_peak_bytes >= 0
    row |= {"outcome": "ok" if found else "nothing found"}
    if found:
        row |= {"claimed_peak_bytes": claimed_peak_bytes, "claimed_recompute_s": claimed_ms / MS_PER_S}
    for name, option_count in (("eight", OPTIONS), ("fine", FINE_OPTIONS)):
        problem = stack.problem(option_count)
        optimum, exact = timed(solve_exact, problem, budget_bytes)
        row[name] = {"exact_solve_s": exact.wall, "exact_process_s": exact.process, "exact_recompute_s": optimum.time_s}
        row[name] |= {"exact_peak_bytes": optimum.peak_bytes, "exact_gap": optimum.gap}
        if found:
            choice = stack.choice_of(decisions, option_count)
            peak_bytes, recompute_s = problem.peak_bytes(choice), problem.time_ps(choice) / 1e12
            at_its_peak = solve_exact(problem, peak_bytes)
            assert at_its_peak.time_s <= recompute_s, "no choice is faster than the optimum at its own peak"
            row[name] |= {
                "peak_bytes": peak_bytes,
                "recompute_s": recompute_s,
                "recompute_over_exact": recompute_s / optimum.time_s,
                "recompute_over_exact_at_its_peak": recompute_s / at_its_peak.time_s,
                "claimed_over_exact": claimed_ms / MS_PER_S / optimum.time_s,
            }
    return row


def show(row):
    cells = [f"{row['layers']:4d} layers"]
    for solver in ("exact", "greedy", "ilp", "exhaustive", "frontier"):
        if solver in row:
            of = row[solver]
            cells.append(f"{solver} {of['solve_s'] * 1e3:.1f} ms (process {of['process_s'] * 1e3:.1f})")
            if solver == "greedy":
                cells.append(f"+{of['largest_excess_over_exact']:.3%} at most")
            if of.get("hit_limit"):
                cells.append("stopped at its limit")
    print("  ".join(cells), file=sys.stderr)


def show_milp(row):
    cells = [f"{row['layers']:4d} units, {'all alike' if row['alike'] else 'all different'}"]
    cells.append(f"sac_milp {row['solve_s']:.2f} s{', stopped at its limit' if row['hit_limit'] else ''}")
    for name in ("eight", "fine"):
        of = row[name]
        cells.append(f"exact, {name} options {of['exact_solve_s'] * 1e3:.1f} ms")
        if row["outcome"] == "ok":
            at_its_peak = of["recompute_over_exact_at_its_peak"]
            cells.append(f"sac_milp recomputes ×{of['recompute_over_exact']:.4f}, ×{at_its_peak:.4f} at its own peak")
    cells.append(row["outcome"])
    print("  ".join(cells), file=sys.stderr)


def numbers(text):
    return [int(part) for part in text.split(",") if part]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="up to 128 layers, two seeds, sac_milp with 8 units")
    parser.add_argument("--sac-milp-layers", type=numbers, help="default: 16,32; none with an empty text")
    parser.add_argument("--save", action="store_true", help="write results/solver.json")
    arguments = parser.parse_args()
    milp_layers = arguments.sac_milp_layers
    if milp_layers is None:
        milp_layers = [8] if arguments.fast else [16, 32]
    seeds, ilp_limit_s, frontier_runs = (2, 2.0, 1) if arguments.fast else (10, 60.0, 3)
    sizes = SIZES[:-1] if arguments.fast else SIZES
    document = {"benchmark": "solver", "fast": arguments.fast, "solvers": [], "sac_milp": []}
    solve_exact(stack_problem(random.Random(0), 8), 10**13)  # numpy loads parts of itself on first use
    for layer_count in (EXHAUSTIVE_LAYERS, *sizes):
        document["solvers"].append(solvers_at(layer_count, seeds, ilp_limit_s, frontier_runs))
        show(document["solvers"][-1])
    for layer_count in milp_layers:
        for alike in (False, True):
            document["sac_milp"].append(sac_milp_at(layer_count, alike))
            show_milp(document["sac_milp"][-1])
    if arguments.save:
        results.save("solver", document)
    print(json.dumps(document))


if __name__ == "__main__":
    main()

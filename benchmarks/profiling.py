"""How long it takes, and how much of this machine's memory, to know a model of a real size: loaded and profiled on fake
tensors, step by step, for a card that is not there.

Each model has a process of its own. Time is counted from after the imports; memory is the process's highest resident
size. Steps are a forward and a backward with marks at the layers, under no AC, full AC, and a plan that mixes
treatments, whether the card has room for them or not. A table goes to stderr; the last line on stdout is one JSON
document.

    python benchmarks/profiling.py --fast   # Llama 3 8B with four layers
    python benchmarks/profiling.py --save   # what results/profiling.json holds
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import results

CONFIGS = Path(__file__).parent.parent / "examples" / "hf"


@dataclass(frozen=True)
class Case:
    name: str
    config: str
    device: str
    world_size: int
    seq: int
    layers: int | None = None

    @property
    def spec(self):
        layers = "" if self.layers is None else f"&layers={self.layers}"
        return f"hf:{CONFIGS / self.config}.json?batch=1&seq={self.seq}{layers}"


CASES = (
    Case("Llama 3 8B", "llama3-8b", "sim:h100", 1, 8192),
    Case("Llama 3 70B", "llama3-70b", "sim:b200", 64, 4096),
    Case("Qwen3-30B-A3B", "qwen3-30b-a3b", "sim:b200", 8, 4096),
    Case("DeepSeek-V3 16B", "deepseek-v3-16b", "sim:b200", 8, 4096),
    Case("DeepSeek-V3 671B", "deepseek-v3-671b", "sim:b200", 256, 4096),
)
FAST = (Case("Llama 3 8B, 4 layers", "llama3-8b", "sim:h100", 1, 8192, layers=4),)


def profile(case):
    """In a process of its own: loads the model and runs the steps."""
    import transformers.models.auto.modeling_auto  # noqa: F401  # what loading a config would import

    import actune.measure.simulated  # noqa: F401  # and what a worker imports at its first request
    from actune.plan import Plan, Treatment, dump_plan
    from actune.records import Failed, LoadTarget
    from actune.step_profile import ProfilePlan
    from actune.worker import Worker

    worker = Worker(lambda: None)
    start_s = time.perf_counter()
    loaded = worker.answer(LoadTarget(case.spec, case.device, seed=0, world_size=case.world_size))
    if isinstance(loaded, Failed):
        raise SystemExit(f"{case.name}: {loaded.message}")
    load_s = time.perf_counter() - start_s
    layer_fqns = loaded.target.structure.layer_fqns
    steps = []
    for name in ("none", "full", "mixed"):
        cycle = {
            "none": [Treatment("none")],
            "full": [Treatment("full")],
            "mixed": [Treatment("full"), Treatment("full", wrap=("mlp",)), Treatment("full", wrap=("self_attn",))],
        }[name]
        chosen = {fqn: cycle[i % len(cycle)] for i, fqn in enumerate(layer_fqns)}
        request = ProfilePlan(dump_plan(Plan.from_treatments(chosen)), with_optimizer=False, timed_steps=1)
        step_start_s = time.perf_counter()
        reply = worker.answer(request)
        took_s = time.perf_counter() - step_start_s
        if isinstance(reply, Failed):
            raise SystemExit(f"{case.name}: {reply.message}")
        steps.append(
            {
                "plan": name,
                "profile_s": took_s,
                "peak_bytes": reply.steady.peak_bytes,
                "step_time_s": reply.steady.step_time_s,
            }
        )
    return {
        **asdict(case),
        "layers": len(layer_fqns),
        "parameter_bytes": loaded.target.parameter_bytes,
        "load_s": load_s,
        "steps": steps,
        "total_s": time.perf_counter() - start_s,
        "host_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def in_a_process(case):
    code = f"import json, profiling; print(json.dumps(profiling.profile(profiling.{case!r})))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, stdout=subprocess.PIPE, check=True)
    return json.loads(ran.stdout.splitlines()[-1])


def show(document):
    print(
        f"{'model':22} {'device':10} {'ranks':>5} {'load':>6}  {'none':>7} {'full':>7} {'mixed':>7} "
        f"{'in all':>6}  {'host':>9}",
        file=sys.stderr,
    )
    for case in document["cases"]:
        steps = [f"{step['profile_s']:.2f}" for step in case["steps"]]
        print(
            f"{case['name']:22} {case['device']:10} {case['world_size']:5} {case['load_s']:6.2f}  "
            f"{' '.join(f'{step:>7}' for step in steps)} {case['total_s']:6.2f}  "
            f"{case['host_peak_bytes'] / 2**30:5.2f} GiB",
            file=sys.stderr,
        )
    print("seconds after import; highest resident size of the process", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="Llama 3 8B with four layers alone")
    parser.add_argument("--save", action="store_true", help="write results/profiling.json")
    arguments = parser.parse_args()
    document = {"cases": [in_a_process(case) for case in (FAST if arguments.fast else CASES)]}
    show(document)
    if arguments.save:
        results.save("profiling", document)
    print(json.dumps(document))


if __name__ == "__main__":
    main()

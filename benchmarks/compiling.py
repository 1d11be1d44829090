"""How long a compiled plan takes to start: cold, and where it differs from an earlier plan in a few layers.

Plans are started one after the other in one worker, and some again in a new worker. PyTorch's caches begin empty, in a
folder of their own. What each worker pays once for loading the compiler is paid before. `first_s` is the first step's
time; `over_cold` is its ratio to the first plan's. Beside it: what PyTorch's caches of traced graphs and of kernels had
(hits, misses; bypassed: traced anew, its kernels may be loaded all the same).

Prints one JSON line. `--fast` takes a smaller model and fewer plans, `--save` keeps the line in results/compiling.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

from results import save

SIZES = {"fast": "dense-tiny?layers=4&batch=1", "whole": "dense-tiny-12"}


def plans(fqns):
    """Plans by name: a plan, ones that differ in two layers by a treatment that is new, and by ones that are known."""
    from actune.plan import Plan, Treatment

    full, sac = Treatment("full"), Treatment("selective")
    named = Treatment("selective", save_every_nth_mm=0, save=("attention.wo::mm",))

    def with_two(first, treatment):
        given = {fqn: treatment if first <= number < first + 2 else full for number, fqn in enumerate(fqns)}
        return Plan.from_treatments(given, compile="layer")

    return {
        "full": with_two(0, full),
        "sac on two layers": with_two(0, sac),
        "sac on two other layers": with_two(2, sac),
        "a named output kept on two layers": with_two(0, named),
        "a named output kept on two other layers": with_two(2, named),
    }


def start_all(spec, names):
    """In a worker: starts the plans one after the other."""
    import torch
    from torch._dynamo.utils import counters

    from actune.measure import Workload, open_device

    torch.compile(lambda x: torch.sin(x @ x).sum())(torch.ones(3, 3, requires_grad=True)).backward()
    workload = Workload(spec, open_device("cpu"), seed=0)
    made = plans(workload.structure.layer_fqns)
    found = []
    for name in names:
        workload.restart()
        counters.clear()
        start_s = time.perf_counter()
        with workload.under(made[name]):
            workload.forward_backward(0)
        first_s = time.perf_counter() - start_s
        traced, kernels = counters["aot_autograd"], counters["inductor"]
        found.append(
            {
                "plan": name,
                "first_s": first_s,
                "graphs_traced": {kind: traced[f"autograd_cache_{kind}"] for kind in ("hit", "miss", "bypass")},
                "kernels": {kind: kernels[f"fxgraph_cache_{kind}"] for kind in ("hit", "miss")},
            }
        )
        workload.forget_plans()
    print(json.dumps(found))


def worker(spec, names, cache_folder):
    """What `start_all` found in a process of its own."""
    command = [sys.executable, __file__, "--start", spec, *names]
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache_folder}
    ended = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
    return json.loads(ended.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--start", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.start:
        start_all(arguments.start[0], arguments.start[1:])
        return
    spec = SIZES["fast" if arguments.fast else "whole"]
    every = list(plans([f"layers.{number}" for number in range(4)]))
    with tempfile.TemporaryDirectory() as cache_folder:
        same = worker(spec, every[:3] if arguments.fast else every, cache_folder)
        new = worker(spec, every[2:3] if arguments.fast else [every[2], every[4]], cache_folder)
    cold_s = same[0]["first_s"]
    starts = [
        {"worker": which, **found, "over_cold": found["first_s"] / cold_s}
        for which, of_worker in (("same", same), ("new", new))
        for found in of_worker
    ]
    document = {"benchmark": "compiling", "target": spec, "cold_s": cold_s, "starts": starts}
    for start in starts:
        print(
            f"{start['worker']:5} {start['plan']:41} {start['first_s']:6.2f} s  {start['over_cold']:5.2f} × cold  "
            f"graphs {start['graphs_traced']}  kernels {start['kernels']}",
            file=sys.stderr,
        )
    if arguments.save:
        save("compiling", document)
    print(json.dumps(document))


if __name__ == "__main__":
    main()

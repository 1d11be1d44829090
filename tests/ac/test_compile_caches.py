"""PyTorch's compiler caches serve the next trial: what differs is compiled, what does not is loaded."""

import pickle

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache

from actune.ac import apply_plan, remove_plan
from actune.ac.regions import resolve_rules
from actune.ac.sac import traced_context_fn
from actune.ac.save_rules import RegionMemory
from actune.plan import Plan, Treatment
from tests.ac.models import IGNORE_TORCHS_OWN, step, tokens
from tests.ac.test_compile import Layer, layers, matmuls_in_backward

pytestmark = IGNORE_TORCHS_OWN


@pytest.fixture
def cold_caches():
    with fresh_cache():
        torch._dynamo.reset()
        yield
    torch._dynamo.reset()


def start(model, *treatments):
    """The caches' hits and misses of a plan's first step, as in a new trial."""
    torch._dynamo.reset()
    counters.clear()
    plan = Plan.from_treatments({f"layers.{i}": given for i, given in enumerate(treatments)}, compile="layer")
    apply_plan(model, plan)
    step(model, tokens())
    traced, kernels = counters["aot_autograd"], counters["inductor"]
    found = {name: traced[f"autograd_cache_{name}"] for name in ("hit", "miss", "bypass")}
    again = matmuls_in_backward(model, tokens().requires_grad_()) - 6 * len(treatments)
    remove_plan(model)
    return found, kernels["fxgraph_cache_miss"], again


def test_the_next_trial_loads_what_does_not_differ(cold_caches):
    model = layers(2)
    full, nothing_kept, all_kept = Treatment("full"), *(Treatment("selective", save_every_nth_mm=n) for n in (0, 1))
    named = Treatment("selective", save_every_nth_mm=0, save=("w1::mm",))
    found, _, again = start(model, full, nothing_kept)
    assert (found, again) == ({"hit": 0, "miss": 2, "bypass": 0}, 4)
    found, kernels_missing, again = start(model, full, nothing_kept)
    assert (found, kernels_missing, again) == ({"hit": 2, "miss": 0, "bypass": 0}, 0, 4)
    # Other rules on the same graph are no hit, and are followed.
    found, _, again = start(model, full, all_kept)
    assert (found, again) == ({"hit": 1, "miss": 1, "bypass": 0}, 2)
    # Rules that name modules are traced each time, as two graphs may differ in nothing but names; kernels are loaded.
    start(model, full, named)
    found, kernels_missing, again = start(model, full, named)
    assert (found, kernels_missing, again) == ({"hit": 1, "miss": 0, "bypass": 1}, 0, 3)


def test_a_key_names_what_decides_and_nothing_of_the_process():
    def made(**knobs):
        rules = resolve_rules(Treatment("selective", **knobs), Layer(), "layers.0")
        return traced_context_fn(rules, None, RegionMemory())

    first, same, other = made(save_every_nth_mm=2), made(save_every_nth_mm=2), made(save_every_nth_mm=3)
    assert pickle.dumps(first) == pickle.dumps(same) != pickle.dumps(other)
    assert first.cache_hash in pickle.dumps(first).decode("latin-1")
    hashes = {
        made(**knobs).cache_hash
        for knobs in ({"save_every_nth_mm": 1}, {"save_ops": ("topk",)}, {"filter_fqns": ("w1",)})
    }
    assert len(hashes | {first.cache_hash, other.cache_hash}) == 5
    assert not hasattr(made(save=("w1::mm",)), "cache_hash")

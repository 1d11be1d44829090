"""The frontier of save sets against all sets there are."""

from __future__ import annotations

import itertools
import random

import pytest

from actune.cost.save_sets import SavableOp, save_set_frontier
from actune.errors import CostError


def allowed_sets(ops):
    randoms = [number for number, op in enumerate(ops) if op.random]
    for size in range(len(ops) + 1):
        for kept in itertools.combinations(range(len(ops)), size):
            forced = all(number in kept for number, op in enumerate(ops) if op.forced)
            kept_randoms = [number for number in randoms if number in kept]
            chain = all(number in kept for number in randoms if kept_randoms and number > kept_randoms[0])
            if forced and chain:
                yield kept


def points_of(ops):
    """Bytes and recompute time of every allowed set that no other allowed one beats."""
    found = set()
    for kept in allowed_sets(ops):
        recompute_ms = sum(round(op.time_s * 1e3) for number, op in enumerate(ops) if number not in kept)
        found.add((sum(ops[number].storage_bytes for number in kept), recompute_ms))
    return sorted(p for p in found if not any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in found))


def random_ops(rng):
    return [
        SavableOp(
            f"m::op#{number + 1}",
            rng.choice([0, 4, 4, 6, 9]),
            rng.choice([0.0, 0.001, 0.002, 0.005]),
            forced=rng.random() < 0.1,
            random=rng.random() < 0.2,
        )
        for number in range(8)
    ]


@pytest.mark.parametrize("seed", range(30))
def test_the_frontier_is_that_of_all_sets(seed):
    ops = random_ops(random.Random(seed))
    found = save_set_frontier(ops)
    assert [(s.kept_bytes, round(s.recompute_s * 1e3)) for s in found] == points_of(ops)
    names = [op.name for op in ops]
    for save_set in found:
        kept = tuple(names.index(name) for name in save_set.names)
        assert kept in set(allowed_sets(ops))


def test_thinning_keeps_the_ends_and_the_bend():
    ops = [SavableOp(f"m::op#{n}", 10, time_s) for n, time_s in enumerate((0.1, 0.001, 0.001, 0.001))]
    all_points = save_set_frontier(ops)
    assert [s.kept_bytes for s in all_points] == [0, 10, 20, 30, 40]
    assert [s.kept_bytes for s in save_set_frontier(ops, points=3)] == [0, 10, 40]
    assert [s.kept_bytes for s in save_set_frontier(ops, points=2)] == [0, 40]


def test_forty_ops_of_a_few_shapes_are_no_trouble():
    rng = random.Random(0)
    ops = [SavableOp(f"m::op#{n}", rng.choice([64, 128, 384]) * 2**20, rng.random()) for n in range(40)]
    frontier = save_set_frontier(ops)
    assert frontier[0].kept_bytes == 0
    assert frontier[-1].recompute_s == pytest.approx(0)
    assert len(frontier) < 400


def test_what_makes_no_frontier_is_said():
    with pytest.raises(CostError, match="points: 1 is too few"):
        save_set_frontier([], points=1)
    with pytest.raises(CostError, match="storage_bytes of 'a::mm' is -1"):
        SavableOp("a::mm", -1, 0.0)

"""Small problems at random, and larger ones like those of real stacks."""

from __future__ import annotations

from dataclasses import replace

from actune.cost.solver import LayerChoices, Option, Problem


def small_problem(rng, *, ties=False):
    """Few layers with few options. Small numbers make equal peaks and times likely; some times are no round numbers."""
    most_bytes, most_s = rng.choice([3, 10, 1000]), rng.choice([3, 1000])
    layers = [
        LayerChoices(
            tuple(
                Option(
                    rng.randrange(-1, most_bytes),
                    rng.randrange(2 * most_bytes),
                    rng.randrange(most_s) / rng.choice([1, 7]),
                )
                for _ in range(rng.randint(1, 4))
            ),
            rng.randrange(most_bytes),
        )
        for _ in range(rng.randint(1, 5))
    ]
    if ties and len(layers) > 2:
        tied = rng.sample(range(len(layers)), rng.randint(2, len(layers)))
        count = min(len(layers[number].options) for number in tied)
        for number in tied:
            layers[number] = replace(layers[number], options=layers[number].options[:count], tie="shared")
    return Problem(tuple(layers), rng.randrange(2 * most_bytes), rng.random())


def stack_problem(rng, layer_count, *, after_bytes=None, need_spread=1.3, classes=None):
    """A stack of layers with eight options each, from keeping all to keeping next to nothing.

    Args:
        after_bytes: what is held after each layer; little, and the logits at the end without it.
        need_spread: how much of what the layer holds without AC an option needs at most.
        classes: how many kinds of layers there are, in turns; all are different without it.
    """
    kinds = []
    for _ in range(classes or layer_count):
        all_bytes, base_s = rng.randint(200_000_000, 2_000_000_000), rng.uniform(0.005, 0.05)
        shares = [1.0, *sorted((rng.uniform(0.05, 0.95) for _ in range(6)), reverse=True), 0.02]
        kinds.append(
            tuple(
                Option(
                    int(all_bytes * share),
                    int(all_bytes * rng.uniform(1, need_spread)),
                    base_s * (1 + 0.33 * (1 - share) ** 1.5 * rng.uniform(0.8, 1.2)),
                )
                for share in shares
            )
        )
    after = after_bytes or [rng.randint(0, 50_000_000) for _ in range(layer_count - 1)] + [4_000_000_000]
    return Problem(
        tuple(LayerChoices(kinds[number % len(kinds)], after[number]) for number in range(layer_count)),
        1_000_000_000,
        0.05,
    )


def budget_between(problem, share, lowest_bytes):
    """A budget so far between the smallest peak and that of the fastest options."""
    fastest = [min(range(len(each.options)), key=lambda n: each.options[n].time_s) for each in problem.layers]
    return lowest_bytes + int(share * (problem.peak_bytes(fastest) - lowest_bytes))

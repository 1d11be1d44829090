"""What a worker's environment needs before torch starts: which card it gets, and the allocator's settings.

The coordinator opens no CUDA context and does not import torch: it learns of cards from the environment or the driver.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence

from actune.errors import UsageError

VISIBLE = "CUDA_VISIBLE_DEVICES"
ALLOCATOR = "PYTORCH_ALLOC_CONF"
OLD_ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"
EXPANDABLE = "expandable_segments:True"
"""What PyTorch recommends in its out-of-memory message, and what torchtitan sets."""
DRIVER_TIMEOUT_S = 30
CARD = re.compile(r"cuda:(0|[1-9]\d{0,3})")


def worker_environments(
    device: str,
    workers: int,
    environment: Mapping[str, str],
    *,
    nproc_per_node: int = 1,
    cards: Sequence[str] = (),
) -> tuple[dict[str, str], ...]:
    """What each worker has in its environment beside the coordinator's own.

    One worker sees all cards and takes the one that `device` names, or one for each of its processes. Several, and any
    number where cards are named, get cards of their own and see no others. The allocator has expandable segments,
    unless the user has set it by either name.

    Args:
        device: as given: `cpu`, `cuda`, `cuda:1`, `sim:h100`.
        workers: how many there are at most.
        environment: the coordinator's own.
        nproc_per_node: processes of a worker, each with a card.
        cards: which to use, as `--devices` names them (`cuda:0`): each by its number among the visible ones. All
            visible ones if none is named.

    Raises:
        UsageError: the workers would share a card, it can't be known how many there are, or one that is named is not
            there or stands twice.
    """
    if cards and device != "cuda":
        raise UsageError(f"--devices {','.join(cards)} names cards for --device cuda, not for '{device}'.")
    if not re.fullmatch(r"cuda(:\d+)?", device):
        return ({},) * workers
    is_set = ALLOCATOR in environment or OLD_ALLOCATOR in environment
    common = {} if is_set else {ALLOCATOR: EXPANDABLE}
    if workers == 1 and not cards:
        return (common,)
    if device != "cuda":
        raise UsageError(
            f"--workers {workers}: {device} is one card, and trials that share it would count each other's memory and "
            "wait for each other. Give --device cuda for a card each, or one worker."
        )
    visible = visible_cards(environment)
    usable = _named(cards, visible) if cards else visible
    if workers * nproc_per_node > len(usable):
        needs = "one of its own" if nproc_per_node == 1 else f"{nproc_per_node} of its own"
        have = f"--devices names {len(usable)}" if cards else f"{len(usable)} CUDA devices are visible"
        more = "name more by --devices" if cards else f"show more devices by {VISIBLE}"
        raise UsageError(f"--workers {workers}: {have}, and each worker needs {needs}. Give fewer workers, or {more}.")
    return tuple(
        common | {VISIBLE: ",".join(usable[number * nproc_per_node : (number + 1) * nproc_per_node])}
        for number in range(workers)
    )


def _named(cards: Sequence[str], visible: Sequence[str]) -> list[str]:
    """The cards as CUDA_VISIBLE_DEVICES names them."""
    for place, card in enumerate(cards):
        match = CARD.fullmatch(card)
        if match is None:
            raise UsageError(f"--devices: '{card}' is no card. Expected numbers such as cuda:0,cuda:1.")
        if int(match[1]) >= len(visible):
            raise UsageError(
                f"--devices: {card} is not there: {len(visible)} CUDA devices are visible, the first of them cuda:0."
            )
        if card in cards[:place]:
            raise UsageError(f"--devices: {card} stands twice, and trials that share a card would count each other's.")
    return [visible[int(card.removeprefix("cuda:"))] for card in cards]


def visible_cards(environment: Mapping[str, str]) -> list[str]:
    """The cards that a process with this environment may use, as CUDA_VISIBLE_DEVICES names them.

    Raises:
        UsageError: neither the environment nor the driver's `nvidia-smi` tells.
    """
    if VISIBLE in environment:
        cards: list[str] = []
        for card in environment[VISIBLE].split(","):
            if not card.strip() or card.strip().startswith("-"):
                break  # as CUDA does: what follows an invalid one is not visible
            cards.append(card.strip())
        return cards
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=DRIVER_TIMEOUT_S
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise UsageError(
            f"how many CUDA devices there are is not known: nvidia-smi -L failed ({type(error).__name__}). Name them "
            f"by {VISIBLE}, such as {VISIBLE}=0,1, or give one worker."
        ) from None
    if re.search(r"^\s*MIG ", listed, re.MULTILINE):
        raise UsageError(
            f"the cards are split (MIG), and a process sees one part unless told otherwise. Name the parts by "
            f"{VISIBLE}, as nvidia-smi -L lists them, or give one worker."
        )
    # Their numbers in CUDA's own order, whichever that is; only how many there are comes from the driver.
    return [str(number) for number in range(len(re.findall(r"^GPU \d+:", listed, re.MULTILINE)))]

"""Commands that read a store once and end."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collecting() -> Iterator[None]:
    """Within it, Python does not look for garbage in cycles.

    Who reads ten thousand trials makes hundreds of thousands of objects that are all still needed, and Python would
    look through them again and again: a third of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

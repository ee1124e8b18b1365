"""Python's search for reference cycles, put off.

Capture and the passes make millions of small objects that live on: interned nodes, which hold no cycle. The collector
walks through all of them again and again and finds nothing to free; that takes a quarter of a build.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """No search meanwhile, in this thread's work or another's; then as before. A decorator as well."""
    searched = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searched:
            gc.enable()

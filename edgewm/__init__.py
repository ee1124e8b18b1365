"""edgewm: a compiler for the world models of robots. `edgewm.compile(model, target=...)`, `edgewm.Runtime(bundle)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["EdgewmError", "Runtime", "__version__", "compile"]

if TYPE_CHECKING:
    from .binding import Runtime
    from .build import compile
    from .errors import EdgewmError

_HOMES = {"Runtime": ".binding", "compile": ".build", "EdgewmError": ".errors"}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used, so that importing edgewm costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'edgewm' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name], __name__), name)

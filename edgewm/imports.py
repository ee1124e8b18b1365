"""`module:function`, as the command line takes models and simulators of one's own."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import EdgewmError


def module_of(spec: str) -> ModuleType:
    """The module of `module:function`, imported as from here. EdgewmError when there is none or its code raises."""
    name = spec.partition(":")[0]
    fix = "give module:function as Python would import it from here"
    if not all(part.isidentifier() for part in name.split(".")):
        raise EdgewmError(f"{name!r} is no name of a module", spec, fix)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as fault:
        raise EdgewmError(f"no module named {fault.name}", spec, fix) from fault
    except (Exception, SystemExit) as fault:  # whatever a module of the user's does when it is run
        first = (str(fault).strip().splitlines() or [""])[0]
        what = f"{name} cannot be imported: {type(fault).__name__}: {first}"
        raise EdgewmError(what, spec, f"mend what `python -c 'import {name}'` shows") from fault


def function_of(spec: str) -> Callable[..., Any]:
    """What `module:function` names. EdgewmError as `module_of`, and when the module has no such function."""
    module, function = module_of(spec), spec.partition(":")[2]
    try:
        found = getattr(module, function)
    except AttributeError as fault:
        raise EdgewmError(f"{module.__name__} has no {function!r}", spec, "name a function of that module") from fault
    if not callable(found):
        raise EdgewmError(f"{function!r} of {module.__name__} is no function", spec, "name a function of that module")
    return found

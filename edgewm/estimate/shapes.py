"""`shape:NAME[,key=number...]`: networks of public sizes (`shapes.toml`) and single products."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import EdgewmError
from .network import FAMILIES, Network, stages

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = Path(__file__).with_name("shapes.toml")
PRODUCT = ("m", "n", "k")


@cache
def shapes() -> Mapping[str, Mapping[str, Any]]:
    """Every network of the file by name."""
    return tomllib.loads(FILE.read_text())


def names() -> tuple[str, ...]:
    """What may stand behind `shape:`; a product takes its sizes."""
    return (*shapes(), "product")


def _spelling(name: str) -> str:
    return name.lower().replace("_", "-").replace("/", "-").replace(" ", "-")


def network_of(spec: str) -> Network:
    """The network of `NAME[,key=number...]`, or of `product,m=,n=,k=`.

    A key sets that size in every stage that has it. EdgewmError for a name, a key or a number that there is not.
    """
    name, *given = spec.split(",")
    sizes = dict(_size(text) for text in given)
    if _spelling(name) == "product":
        if set(PRODUCT) - sizes.keys() or sizes.keys() - {*PRODUCT, "batch"}:
            raise EdgewmError("a product has m, n and k", f"shape:{spec}", "write shape:product,m=197,n=768,k=768")
        m, n, k = (sizes[key] for key in PRODUCT)
        rows = [{"family": "products", "sizes": [[m, n, k, 1]], "batch": sizes.get("batch", 1)}]
        return Network(f"product {m}x{n}x{k}", tuple(stages(rows)), "sizes as given")
    table = _named(name)
    own = shapes()[table]["stages"]
    known = set().union(*map(_parameters, own))
    if strange := sorted(sizes.keys() - known):
        fix = f"set one of {', '.join(sorted(known))}"
        raise EdgewmError(f"{table} has no {', '.join(strange)}", f"shape:{spec}", fix)
    rows = [{**stage, **{k: v for k, v in sizes.items() if k in _parameters(stage)}} for stage in own]
    title = ",".join([table, *(f"{k}={v}" for k, v in sizes.items())])
    return Network(title, tuple(stages(rows)), shapes()[table]["source"], tuple(shapes()[table].get("notes", ())))


def _parameters(stage: Mapping[str, Any]) -> set[str]:
    """Sizes of a stage that are one number."""
    return {p for p in inspect.signature(FAMILIES[stage["family"]]).parameters if p not in ("sizes", "cached")}


def _named(name: str) -> str:
    spellings = {_spelling(s): table for table, row in shapes().items() for s in (table, *row.get("aliases", ()))}
    wanted = _spelling(name)
    if wanted not in spellings:
        near = difflib.get_close_matches(wanted, spellings, 3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise EdgewmError(f"no shape is named {name!r}", f"shape:{name}", f"{hint}known: {', '.join(names())}")
    return spellings[wanted]


def _size(text: str) -> tuple[str, int]:
    key, equals, value = text.partition("=")
    if not equals or not value.isdigit() or int(value) < 1:
        raise EdgewmError(f"{text!r} is no size", "shape:NAME,key=number", "write, for example, shape:vit-b-16,batch=8")
    return key.strip(), int(value)

"""Tensors known at capture: parameters, buffers, and whatever is computed from these alone.

They stay torch tensors, so that torch itself folds them, until an op that depends on an input reads one; then it
becomes a `weight` leaf (or a `const`, when all its elements are equal and it is no parameter) and its array enters the
store.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import torch

from . import expr as e
from .errors import EdgewmError
from .program import Node

Store = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor, the state-dict name it comes from (`raw`: it is that very entry), and the store its array goes to."""

    tensor: torch.Tensor
    name: str
    raw: bool
    store: Store
    leaves: dict[str, Node] = field(default_factory=dict)  # made from it already, by layout

    def derived(self, tensor: torch.Tensor) -> Constant:
        return Constant(tensor, self.name, False, self.store)


def array_of(tensor: torch.Tensor) -> np.ndarray:
    """float32, or float64 where the module is in float64 (for comparisons in real arithmetic)."""
    tensor = tensor.detach().cpu()
    return tensor.to(torch.float64 if tensor.dtype == torch.float64 else torch.float32).contiguous().numpy().copy()


def check_finite(name: str, tensor: torch.Tensor, where: str = "the model's state dict") -> None:
    """EdgewmError naming the weight that holds NaN or Inf."""
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        kind = "NaN" if bool(tensor.isnan().any()) else "Inf"
        raise EdgewmError(f"weight {name} holds {kind}", where, "train or export the model again")


def weight(store: Store, name: str, array: np.ndarray) -> Node:
    """The leaf of this array: named `name`, or `name@<hash>` where that name already stands for another array."""
    if name in store and not (store[name].shape == array.shape and np.array_equal(store[name], array)):
        name = f"{name}@{hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest()[:8]}"
    store[name] = array
    return e.weight(name, array.shape)


def as_node(value: object) -> object:
    """A `Constant` as a node; anything else as it is."""
    return leaf(value) if isinstance(value, Constant) else value


def leaf(constant: Constant) -> Node:
    """The node that holds this tensor."""
    if "as it is" not in constant.leaves:
        constant.leaves["as it is"] = _leaf(constant)
    return constant.leaves["as it is"]


def _leaf(constant: Constant) -> Node:
    tensor, dtype = constant.tensor.detach(), _dtype(constant.tensor)
    if constant.raw and tensor.is_floating_point():
        check_finite(constant.name, tensor)
        return weight(constant.store, constant.name, array_of(tensor))
    if tensor.numel() and bool((tensor == tensor.flatten()[0]).all()):
        return e.expand(e.const(tensor.flatten()[0].item(), dtype), tensor.shape)
    if tensor.is_floating_point() and bool(torch.isneginf(tensor).any()):  # an additive mask
        hidden = constant.derived(torch.isneginf(tensor))
        return e.select(leaf(hidden), float("-inf"), leaf(constant.derived(tensor.masked_fill(hidden.tensor, 0.0))))
    if dtype == "bool":
        return e.less(0.5, leaf(constant.derived(tensor.float())))
    check_finite(constant.name, tensor)
    array = array_of(tensor)
    if not tensor.is_floating_point() and not np.array_equal(array.astype(np.int64), tensor.cpu().numpy()):
        raise EdgewmError(f"integer constant {constant.name} exceeds 2^24", "capture", "keep indices below 2^24")
    name = f"{constant.name}@{hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest()[:8]}"
    return e.cast(weight(constant.store, name, array), dtype)


def _dtype(tensor: torch.Tensor) -> str:
    if tensor.dtype == torch.bool:
        return "bool"
    return "f32" if tensor.is_floating_point() else "i32"

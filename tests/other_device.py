"""A device that is not there, for code that is to run on a GPU: its tensors are tensors of the host that may not meet.

Within `standing_in()` the device `DEVICE` (torch calls it meta, and holds no numbers there) holds numbers and computes
with the host's kernels, bit for bit; attention by its plain formula on both sides. What CUDA refuses, it refuses: an
operation on tensors of both sides but for numbers (0-dim) of the host in element-wise ones, an index of the other side
into a tensor of the host, `.numpy()`. `torch.autocast` of it rounds what that of the host rounds.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

DEVICE = torch.device("meta")  # the only other one that a CPU build of torch lets autograd run on
aten = torch.ops.aten
COPIES = (aten.copy_.default, aten._copy_from_and_resize.default)  # from one side to the other
TAKE_NUMBERS = (aten.fill_.Tensor, aten.index_put_.default, aten.index_put.default, aten.masked_fill.Tensor)
INDEXED = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default)  # by tensors of the host, too


ROUNDED = (F.linear, F.conv2d, F.scaled_dot_product_attention, torch.matmul, Tensor.matmul, Tensor.__matmul__)


class There(Tensor):
    """A tensor of the device; `held` has its numbers."""

    @staticmethod
    def __new__(cls, held: Tensor) -> There:
        sizes = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        return Tensor._make_wrapper_subclass(cls, held.shape, **sizes, device=DEVICE)

    def __init__(self, held: Tensor) -> None:
        self.held = held

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What torch does in a way of its own, of a device that holds no numbers or of a tensor that is another's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func in ROUNDED and _Autocast.within and (rounding := _Autocast.within[-1]) is not None:
            args, given = tree_map(rounding.lower, (args, given))
        if func is torch.tensor and _is_there(given.get("device")):
            return torch.tensor(*args, **{**given, "device": "cpu"}).to(DEVICE)
        if func is Tensor.tolist and isinstance(args[0], There):
            return args[0].held.tolist()
        return func(*args, **given)


class _Autocast:
    """`torch.autocast` of the device: weights are rounded once, as there."""

    within: list[_Autocast | None] = []  # noqa: RUF012
    host = torch.autocast

    def __new__(cls, device_type: str, *args: Any, **kwargs: Any) -> Any:
        return super().__new__(cls) if device_type == DEVICE.type else cls.host(device_type, *args, **kwargs)

    def __init__(self, device_type: str, dtype: torch.dtype = torch.bfloat16, enabled: bool = True) -> None:
        self.dtype, self.enabled, self.weights = dtype, enabled, {}

    def __enter__(self) -> None:
        self.within.append(self if self.enabled else None)

    def __exit__(self, *fault: Any) -> None:
        self.within.pop()

    def lower(self, x: Any) -> Any:
        if not isinstance(x, There) or x.dtype != torch.float32:
            return x
        if not (x.requires_grad and x.is_leaf and not x._is_view()):
            return x.to(self.dtype)
        return self.weights.setdefault(id(x), (x, x.to(self.dtype)))[1]


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _is_there(device: Any) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given: list[Tensor] = []
    held = [_held(x, given) for x in args], {key: _held(x, given) for key, x in kwargs.items()}
    there = [x for x in given if isinstance(x, There)]
    asked = kwargs.get("device")
    is_there = bool(there) if asked is None else _is_there(asked)
    if not there and not is_there:
        return func(*args, **kwargs)
    if 0 < len(there) < len(given):
        _check(func, args, given)
    if asked is not None:
        held[1]["device"] = torch.device("cpu")
    with torch._C._DisableAutocast():
        found = func(*held[0], **held[1])
    if not is_there:
        return found
    return args[0] if func in COPIES else _there(found, {id(x.held): x for x in there})


def _held(value: Any, given: list[Tensor]) -> Any:
    """What the host computes with in the place of an argument; `given` is told of each tensor in it."""
    if isinstance(value, Tensor):
        given.append(value)
        return value.held if isinstance(value, There) else value
    return [_held(x, given) for x in value] if isinstance(value, (list, tuple)) else value


def _there(found: Any, own: dict[int, There]) -> Any:
    """A result of the device: what was changed in place is the tensor that it was."""
    if isinstance(found, Tensor):
        return own[id(found)] if id(found) in own else There(found)
    return type(found)(_there(x, own) for x in found) if isinstance(found, (list, tuple)) else found


def _check(func: Any, args: Any, given: list[Tensor]) -> None:
    """RuntimeError where CUDA would raise one."""
    host = [x for x in given if not isinstance(x, There)]
    if not host or func in COPIES:
        return
    if torch.Tag.pointwise in func.tags or func in TAKE_NUMBERS:
        host = [x for x in host if x.ndim]
    if func in INDEXED and isinstance(args[0], There):
        host = [x for x in host if not any(x is i for i in args[1])]
    if host:
        raise RuntimeError(f"{func}: expected all tensors on the same device, {len(host)} of {len(given)} are not")


@contextlib.contextmanager
def standing_in() -> Iterator[torch.device]:
    """Within, there is the device."""
    own = {"autocast": _Autocast, "inference_mode": _no_grad}
    with mock.patch.multiple(torch, **own), plain_attention(), warnings.catch_warnings(), _Functions(), _Operations():
        warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter")  # this one holds numbers
        yield DEVICE


def _no_grad(mode: bool = True) -> contextlib.AbstractContextManager[None]:
    """In the place of `torch.inference_mode`, whose tensors cannot wrap others."""
    return torch.no_grad() if mode else contextlib.nullcontext()


def plain_attention() -> contextlib.AbstractContextManager[None]:
    return sdpa_kernel(SDPBackend.MATH)

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
from torch.utils._pytree import tree_flatten, tree_map

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
    given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    there = [x for x in given if isinstance(x, There)]
    if there:
        _check(func, args, given)
    asked = kwargs.get("device")
    is_there = bool(there) if asked is None else _is_there(asked)
    if not there and not is_there:
        return func(*args, **kwargs)
    own = {id(x.held): x for x in there}
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    kwargs.pop("pin_memory", None)
    with torch._C._DisableAutocast():
        found = func(*_held(args), **_held(kwargs))
    if func in COPIES:
        return args[0]
    return tree_map(lambda x: own.get(id(x), There(x)) if isinstance(x, Tensor) else x, found) if is_there else found


def _held(values: Any) -> Any:
    return tree_map(lambda x: x.held if isinstance(x, There) else x, values)


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

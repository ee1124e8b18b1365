"""One process, or several that `torchrun` started: each takes its share of a batch, and gradients are averaged.

Losses then are those of one process to rounding, until a student's planner chooses between candidates whose costs tie.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import EdgewmError
from .devices import HOST, device_of

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # what the first does alone may take long; one that died is noticed at once


def backend_of(device: torch.device) -> str:
    return "gloo" if device == HOST else f"{HOST.type}:gloo,{device.type}:nccl"


@dataclass
class Processes:
    """This process is number `rank` of `count`, and trains on `device`; in a `with` block, or one within it, they know
    each other: by gloo what is on the host, by NCCL what is on GPUs."""

    rank: int = 0
    count: int = 1
    device: torch.device = HOST
    is_outermost: bool = False

    @classmethod
    def here(cls, device: str = HOST.type) -> Processes:
        """What torchrun says; alone without it. `device` as `device_of` takes it."""
        rank, count, local, beside = (
            int(os.environ.get(name, alone))
            for name, alone in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1))
        )
        return cls(rank, count, device_of(device, local, beside))

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def __enter__(self) -> Processes:
        self.is_outermost = self.count > 1 and not dist.is_initialized()
        if self.is_outermost:
            dist.init_process_group(backend_of(self.device), timeout=PATIENCE)
        return self

    def __exit__(self, *fault: Any) -> None:
        if self.is_outermost:
            dist.destroy_process_group()

    def of(self, index: np.ndarray) -> np.ndarray:
        """This process's part of what all draw alike."""
        return index[self.rank :: self.count]

    def meet(self) -> None:
        if self.count > 1:
            dist.all_reduce(torch.zeros(1))  # of the host's: which backend a barrier takes is torch's choice

    def first_then_all(self, make: Callable[[], T]) -> T:
        """What the first process writes to disk, the others read."""
        found = make() if self.is_first else None
        self.meet()
        return make() if found is None else found

    def first_says(self, make: Callable[[], Any]) -> Any:
        """What the first process alone finds out, for all: a JSON value. An EdgewmError there is one everywhere."""
        if self.count == 1:
            return make()
        told = b""
        if self.is_first:
            try:
                told = json.dumps({"found": make()}).encode()
            except EdgewmError as fault:
                told = json.dumps({"fault": [fault.what, fault.where, fault.fix]}).encode()
        size = torch.tensor([len(told)])
        dist.broadcast(size, 0)
        text = torch.frombuffer(bytearray(told.ljust(int(size))), dtype=torch.uint8)
        dist.broadcast(text, 0)
        said = json.loads(text.numpy().tobytes())
        if "fault" in said:
            raise EdgewmError(*said["fault"])
        return said["found"]

    def as_first(self, tensors: Iterable[Tensor]) -> None:
        """In place, what the first process has: two GPUs may round what is made on each."""
        if self.count > 1:
            for x in tensors:
                dist.broadcast(x.detach(), 0)

    def average(self, gradients: Sequence[Tensor]) -> None:
        """In place, over processes."""
        if self.count > 1:
            flat = torch.cat([g.flatten() for g in gradients])
            dist.all_reduce(flat)
            for g, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                g.copy_(part.view_as(g) / self.count)

    def mean(self, figures: dict[str, float]) -> dict[str, float]:
        """Over processes."""
        if self.count == 1:
            return figures
        values = torch.tensor(list(figures.values()), dtype=torch.float64)
        dist.all_reduce(values)
        return dict(zip(figures, (values / self.count).tolist(), strict=True))

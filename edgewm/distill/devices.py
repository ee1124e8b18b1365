"""Where a student is trained: on CPUs, or on a GPU for each process. It is decided here alone; what computes does so
where the tensors are that it is given."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch

from ..errors import EdgewmError
from ..options import AUTO

ASKED = re.compile(r"auto|cpu|cuda(:(?P<number>\d+))?")
FLAG = "--device"
HOST = torch.device("cpu")


def device_of(asked: str, local: int = 0, beside: int = 1) -> torch.device:
    """The device of process number `local` of the `beside` ones on this machine: a GPU of its own, where there are any
    or one is asked for, or its CPUs.

    EdgewmError for a device that torch does not have, and for fewer GPUs than processes.
    """
    match = ASKED.fullmatch(asked)
    if match is None:
        raise EdgewmError(f"no device {asked!r}", FLAG, "give auto, cpu, cuda, or one GPU of several, as cuda:1")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    where, here = f"{FLAG} {asked}", f"this machine has {count} GPU{'' if count == 1 else 's'}"
    if asked == "cpu" or (asked == AUTO and not count):
        return HOST
    if not count:
        raise EdgewmError(
            f"torch {torch.__version__} finds no GPU", where,
            "see that `nvidia-smi` lists one, and that torch is built for CUDA, as that of PyPI is: "
            "pip install --force-reinstall torch; or give --device cpu",
        )  # fmt: skip
    if match["number"] is None:
        if beside > count:
            fix = f"start at most {count} here, or give --device cpu"
            raise EdgewmError(f"{beside} processes, and {here}", where, fix)
        return torch.device("cuda", local)
    if beside > 1:
        raise EdgewmError(f"{beside} processes on one GPU", where, "give --device cuda: each process takes its own")
    if (index := int(match["number"])) >= count:
        raise EdgewmError(f"there is no GPU {index}, and {here}", where, f"give a number below {count}")
    return torch.device("cuda", index)


@contextlib.contextmanager
def computing(device: torch.device) -> Iterator[None]:
    """Within, a GPU convolves in float32, where torch would take TF32, what libraries set up for themselves lies there
    too, not on the first GPU, and an EdgewmError tells of a full memory."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            yield
    except torch.OutOfMemoryError as fault:
        raise EdgewmError(
            f"the memory of {device} is full: {str(fault).splitlines()[0]}", FLAG,
            "end what else runs there, give another device, or --device cpu; a run goes on with --resume",
        ) from fault  # fmt: skip
    finally:
        torch.backends.cudnn.allow_tf32 = before

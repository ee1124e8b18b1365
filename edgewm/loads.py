"""Other work for a machine to do while a bundle is timed there: its cores, its memory, its disk, its GPU."""

from __future__ import annotations

import select
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .device import LOCAL, Place
from .errors import EdgewmError

READY = "ready"
READY_S = 60.0  # torch takes its time to start
# Each says so when it is at work. The disk's file has no name, so nothing stays, however it ends.
SCRIPTS = {
    "cpu": f"echo {READY}; while :; do :; done",
    "memory": f"echo {READY}; exec dd if=/dev/zero of=/dev/null bs=64M 2>/dev/null",  # dd fills its buffer
    "disk": 'f=$(mktemp "$0/.load.XXXXXX") && exec 3<>"$f" && rm -f "$f" || exit 1; '
    f"echo {READY}; while dd if=/dev/zero of=/proc/self/fd/3 bs=1M count=64 conv=fsync 2>/dev/null; do :; done",
}
GPU = (
    f"import torch; a = torch.randn(4096, 4096, device='cuda', dtype=torch.float16); print('{READY}', flush=True)\n"
    "while True: a @ a; torch.cuda.synchronize()"
)
LOADS = (*SCRIPTS, "gpu")


@contextmanager
def loaded(load: str, there: Place, found: Mapping[str, Any]) -> Iterator[None]:
    """Busy while the context lasts: one process for each core (one altogether for disk and gpu).

    `found` is the place's `environment.record`. EdgewmError for a load that is not known, or does not run there.
    """
    if load not in LOADS:
        raise EdgewmError(f"no load {load!r}", "--load", f"use {', '.join(LOADS)}")
    if load == "gpu" and not found["nvidia"]:
        raise EdgewmError("no NVIDIA GPU there to be busy", f"--load gpu on {there.device}", "use another --load")
    words = ["sh", "-c", SCRIPTS[load], there.folder] if load in SCRIPTS else [_python(there), "-c", GPU]
    many = (found["cores"] or 1) if load in ("cpu", "memory") else 1
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(there.command(words), **pipes) for _ in range(many)]
    try:
        for process in running:
            _await_ready(process, load, there)
        yield
        for process in running:
            if process.poll() is not None:
                raise _ended(process, load, there)
    finally:
        for process in running:
            process.kill()
            process.wait()
            process.stdout.close()
            process.stderr.close()
        there.stop()


def _python(there: Place) -> str:
    return sys.executable if there.device == LOCAL else "python3"


def _await_ready(process: subprocess.Popen[str], load: str, there: Place) -> None:
    if not select.select([process.stdout], [], [], READY_S)[0] or process.stdout.readline().strip() != READY:
        process.kill()
        raise _ended(process, load, there)


def _ended(process: subprocess.Popen[str], load: str, there: Place) -> EdgewmError:
    said = process.communicate()[1].strip().splitlines() or [f"status {process.returncode}"]
    fix = {"disk": "make the bundle's folder writable and free 64 MiB", "gpu": "install torch with CUDA there"}
    return EdgewmError(
        f"the load does not run: {said[-1]}", f"--load {load} on {there.device}", fix.get(load, "leave --load out")
    )

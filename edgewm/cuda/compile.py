"""CUDA C++ to PTX and cubins with tools from pip: no GPU, no driver, the same bytes for the same input.

The front end (NVRTC) runs once and writes one PTX for every board; each board's assembler turns it into a cubin. So the
code that `tests/ptx.py` executes on a CPU is the code that is assembled for Orin, for Thor and for an H100. Which
release of CUDA assembles for a board is a fact of the board (`toolkit` in targets/*.toml), because a driver loads the
ELF generations it knows: JetPack 6 loads ABI 7, which 13.x tools do not write.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..errors import EdgewmError
from ..toolchain import ERROR_LINES, cache_folder

INSTALL = "pip install 'edgewm[gpu]'"
# The least of the boards served: what it can do, all can. Newer ones gain nothing from their own number here, because
# wgmma and tcgen05 are not used.
PTX_TARGET = "compute_87"
# Rounding as on the CPU: fused multiply-adds are explicit, division and square root are IEEE's, denormals are kept.
COMPILE = (
    "-std=c++17", "-default-device", "--fmad=false", "--prec-div=true", "--prec-sqrt=true", "--ftz=false",
    f"--gpu-architecture={PTX_TARGET}",
)  # fmt: skip


@dataclass(frozen=True)
class Tool:
    """One file of one wheel; the version is exact because the same input must give the same bytes."""

    package: str
    version: str
    file: str

    def path(self) -> Path:
        """Where it lies. EdgewmError where the package is missing or another version."""
        try:
            found = importlib.metadata.distribution(self.package)
        except importlib.metadata.PackageNotFoundError:
            raise EdgewmError(
                f"kernels for a GPU need {self.package}, which is not installed", "--place gpu", INSTALL
            ) from None
        if found.version != self.version:
            raise EdgewmError(
                f"kernels for a GPU need {self.package} {self.version}, and {found.version} is installed",
                str(found.locate_file("")), f"pip install {self.package}=={self.version}",
            )  # fmt: skip
        return Path(str(found.locate_file(self.file)))

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


FRONT_END = Tool("nvidia-cuda-nvrtc-cu12", "12.6.85", "nvidia/cuda_nvrtc/lib/libnvrtc.so.12")
# By release of CUDA. The ptxas of 13.x comes with 115 MB of packages; the linker assembles PTX as well, in 41 MB.
ASSEMBLERS: Mapping[str, Tool] = {
    "12.6": Tool("nvidia-cuda-nvcc-cu12", "12.6.85", "nvidia/cuda_nvcc/bin/ptxas"),
    "13.0": Tool("nvidia-nvjitlink", "13.0.88", "nvidia/cu13/lib/libnvJitLink.so.13"),
}
DISASSEMBLER = Tool("nvidia-cuda-nvdisasm", "13.5.37", "nvidia/cu13/bin/nvdisasm")
READ = "kernels and functions"  # what `read_facts` finds: kept facts of another reading are not taken
WORKER = Path(__file__).with_name("nvidia.py")


@dataclass(frozen=True)
class KernelFacts:
    """What is known of a kernel without running it.

    `registers` a thread; `spill_bytes` stored and `local_bytes` of stack, a thread; `shared_bytes` a block, static ones
    alone. `instructions`: how often each stands in the machine code, by mnemonic (`IMMA.16832.S8.S8`). `elf_abi` and
    `ptx_version` are those of the file it is in. A function that kernels call has facts of its own, with the registers
    of the kernel that has most.
    """

    name: str
    registers: int
    spill_bytes: int
    local_bytes: int
    shared_bytes: int
    elf_abi: int
    ptx_version: str
    instructions: Mapping[str, int] = field(repr=False)


@dataclass(frozen=True)
class Compiled:
    """`cubin` is for `sm` alone; `ptx` is what it was assembled from."""

    sm: str
    cubin: bytes
    ptx: str
    facts: tuple[KernelFacts, ...]


def sees_calls(tools: str) -> bool:
    """Whether this CUDA release compiles a kernel and the functions it calls as one. The linker of 13.x compiles each
    by the calling convention: at a kernel's registers they spill far more than gates allow."""
    return tools in ASSEMBLERS and ASSEMBLERS[tools].file.endswith("ptxas")


def check_tools(tools: str) -> None:
    """EdgewmError where a package that compiles with this CUDA release is missing."""
    for tool in (FRONT_END, ASSEMBLERS[tools], DISASSEMBLER):
        tool.path()


def compile_cuda(text: str, headers: Mapping[str, str], sm: str, tools: str, registers: int | None = None) -> Compiled:
    """Every kernel of the CUDA C++ `text`, compiled for `sm` ("sm_87") by the CUDA release `tools` ("12.6"); with at
    most so many `registers` a thread, in functions that kernels call too, which know of no launch bounds.

    `headers` are the texts it includes, by the name it includes them by. Kept under `toolchain.cache_folder()`, named
    by the SHA-256 of text, headers, options and tools. EdgewmError with the tool's first lines where one refuses or
    ends by itself, and with the line to type where a package is missing.
    """
    _assembler(sm, tools)  # refused before anything that takes time
    return assembled(compile_ptx(text, headers), sm, tools, registers)


def assembled(ptx: str, sm: str, tools: str, registers: int | None = None) -> Compiled:
    """PTX as machine code, kept and refused as in `compile_cuda`."""
    assembler = _assembler(sm, tools)
    options = [f"-maxrregcount={registers}"] if registers else []
    kept = _kept("cubin", [ptx, sm, str(assembler), str(DISASSEMBLER), *options, READ])
    if kept is not None and kept.exists():
        found = _read(kept, sm, ptx)
        if found is not None:
            return found
    with tempfile.TemporaryDirectory(prefix="edgewm-") as scratch:
        folder = Path(scratch)
        (folder / "out.ptx").write_text(ptx)
        said = _assemble(assembler, folder, sm, options)
        cubin = (folder / "out.cubin").read_bytes()
        listing = _run([str(DISASSEMBLER.path()), "-c", "out.cubin"], folder, "nvdisasm", f"listing {sm} code")[0]
    done = Compiled(sm, cubin, ptx, read_facts(said, listing, cubin, ptx))
    if kept is not None:
        facts = json.dumps([asdict(f) | {"instructions": dict(f.instructions)} for f in done.facts])
        _keep(kept, len(facts.encode()).to_bytes(8, "little") + facts.encode() + cubin)
    return done


def _assembler(sm: str, tools: str) -> Tool:
    if tools not in ASSEMBLERS:
        raise EdgewmError(
            f"no tools of CUDA {tools or 'any release'} are known for {sm}", "target, gpu.toolkit",
            f"write one of {', '.join(ASSEMBLERS)}",
        )  # fmt: skip
    return ASSEMBLERS[tools]


def compile_ptx(text: str, headers: Mapping[str, str]) -> str:
    """The PTX of the CUDA C++ `text`, as in `compile_cuda`."""
    library = FRONT_END.path()
    kept = _kept("ptx", [text, json.dumps(sorted(headers.items())), " ".join(COMPILE), str(FRONT_END)])
    if kept is not None and kept.exists():
        return kept.read_text()
    with tempfile.TemporaryDirectory(prefix="edgewm-") as scratch:
        folder = Path(scratch)
        (folder / "include").mkdir()
        (folder / "in.cu").write_text(text)
        for name, header in headers.items():
            (folder / "include" / name).write_text(header)
        _worker("compile", folder, library, COMPILE, "NVRTC", "compiling CUDA C++")
        ptx = (folder / "out.ptx").read_text()
    if kept is not None:
        _keep(kept, ptx.encode())
    return ptx


def _assemble(tool: Tool, folder: Path, sm: str, own: Sequence[str]) -> str:
    """FOLDER/out.cubin from FOLDER/out.ptx; what the assembler says of each kernel."""
    if tool.file.endswith("ptxas"):  # `sees_calls`
        command = [str(tool.path()), "-v", "--fmad=false", f"--gpu-name={sm}", *own, "out.ptx", "-o", "out.cubin"]
        return _run(command, folder, "ptxas", f"assembling for {sm}")[1]
    options = (f"-arch={sm}", "-verbose", "-Xptxas=-v", "-Xptxas=--fmad=false", *own)
    return _worker("link", folder, tool.path(), options, "nvJitLink", f"assembling for {sm}")


def _worker(doing: str, folder: Path, library: Path, options: Sequence[str], tool: str, where: str) -> str:
    command = [sys.executable, "-I", str(WORKER), doing, str(folder), str(library), *options]
    return _run(command, folder, tool, where)[1]


def _run(command: Sequence[str], folder: Path, tool: str, where: str) -> tuple[str, str]:
    """Standard output and error of a tool. EdgewmError where it refuses, crashes or cannot be started."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    except OSError as fault:
        raise EdgewmError(f"{tool} cannot be started: {fault}", where, f"install it again: {INSTALL}") from fault
    if done.returncode == 0:
        return done.stdout, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()][:ERROR_LINES]
    if done.returncode < 0:
        lines.insert(0, f"ended by signal {-done.returncode}")
    raise EdgewmError(
        f"{tool} failed:\n    " + "\n    ".join(lines or [f"exit status {done.returncode}"]), where,
        "mend the first line it names; generated sources are written by the build, so report it if you wrote none",
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------- facts


def read_facts(said: str, listing: str, cubin: bytes, ptx: str) -> tuple[KernelFacts, ...]:
    """Facts of each kernel, by name, from the assembler's `-v`, nvdisasm's listing, the ELF header and the PTX."""
    elf_abi = cubin[8]  # EI_ABIVERSION
    version = re.search(r"^\.version (\S+)", ptx, re.M)[1]
    code = instructions(listing)
    # By each kernel, and all that it calls: registers, bytes of shared memory.
    used: dict[str, tuple[int, int]] = {}
    blocks = re.split(r"Compiling entry function '(\w+)' for '\w+'", said)[1:]
    linked = dict(
        re.findall(r"Function properties for '(\w+)':\n\D*used (\d+) registers", said)
    )  # and by what it calls
    for name, block in zip(blocks[::2], blocks[1::2], strict=True):
        own = re.search(r"Used (\d+) registers[^\n]*", block)
        shared = re.search(r"(\d+) bytes smem", own[0])
        used[name] = max(int(own[1]), int(linked.get(name, 0))), int(shared[1]) if shared else 0
    most = max(registers for registers, _ in used.values())
    found = []
    properties = r"Function properties for (\w+)\n\D*(\d+) bytes stack frame, (\d+) bytes spill stores"
    for name, stack, spilled in re.findall(properties, said):
        registers, shared_bytes = used.get(name, (most, 0))
        facts = (registers, int(spilled), int(stack), shared_bytes, elf_abi, version, code.get(name, {}))
        found.append(KernelFacts(name, *facts))
    return tuple(sorted(found, key=lambda facts: facts.name))


def instructions(listing: str) -> dict[str, dict[str, int]]:
    """How often each instruction stands in the code of each kernel, and of each function that one calls, by name; from
    nvdisasm's listing."""
    found = {}
    pieces = re.split(r"^(?:\.text\.|\$\w+\$)(\w+):\n", listing, flags=re.M)
    for name, text in zip(pieces[1::2], pieces[2::2], strict=True):
        code = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?\w+ )?([A-Z][\w.]*)", text, re.M)
        found[name] = dict(sorted(Counter(code).items()))
    return found


# ---------------------------------------------------------------------------------------------- what is kept


def _kept(kind: str, identity: Sequence[str]) -> Path | None:
    """Where the result of these inputs lies or would lie; None where nothing can be kept."""
    folder = cache_folder() / "cuda"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder / f"{hashlib.sha256(chr(0).join(identity).encode()).hexdigest()}.{kind}"


def _keep(path: Path, data: bytes) -> None:
    """Written beside and renamed, so that a reader sees all of it or nothing."""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as beside:
            beside.write(data)
        Path(beside.name).replace(path)
    except OSError:  # a full or read-only cache costs time, not the build
        return


def _read(path: Path, sm: str, ptx: str) -> Compiled | None:
    """What was kept; None where the file is damaged."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    try:
        facts = tuple(KernelFacts(**f) for f in json.loads(data[8 : 8 + size]))
    except (ValueError, TypeError):
        return None
    cubin = data[8 + size :]
    return Compiled(sm, cubin, ptx, facts) if cubin[:4] == b"\x7fELF" else None

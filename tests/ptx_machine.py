"""The state of some blocks of one kernel, its memories and who runs when; see ptx.py."""

from __future__ import annotations

import re

import numpy as np
import ptx_ops
from ptx import (
    FRESH_SHARED,
    GLOBAL_BASE,
    LOCAL_BASE,
    POISON,
    SHARED_BASE,
    SPACE_BYTES,
    WARP,
    WORD,
    Fault,
    Instruction,
    Kernel,
    Memory,
    Module,
)  # fmt: skip

UNSIGNED = {1: np.bool_, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
RUNNING, PARKED, DONE = range(3)
NOBODY, MANY = -1, -2  # in place of the number of a warp
MOST_BARRIERS = 1 << 32  # that a block passes in one launch
# What another warp may not have done to the same word since the last barrier.
CONFLICTS = {"read": ("write", "atomic"), "write": ("write", "read", "atomic"), "atomic": ("write", "read")}
BARRIERS = {("bar", "sync"), ("barrier", "sync"), ("barrier", "sync", "aligned")}


class Machine:
    """Masks are boolean over all threads, None where all of them step together."""

    def __init__(self, module: Module, kernel: Kernel, memory: Memory, grid, block, shared_bytes: int, blocks: int):
        self.kernel, self.memory, self.grid, self.block = kernel, memory, grid, block
        self.threads = int(np.prod(block))
        if self.threads % WARP:
            raise Fault(f"{kernel.name}: {self.threads} threads a block are not whole warps")
        self.dynamic_at = -(-kernel.shared_bytes // 16) * 16
        self.shared_bytes = self.dynamic_at + shared_bytes
        new = kernel.variables - set(memory.variables)
        memory.variables |= {n: memory.put(module.variables[n], writable=True) for n in sorted(new)}
        self.size = size = blocks * self.threads
        self.block_of = np.repeat(np.arange(blocks), self.threads)
        self.warp_of = np.arange(size) // WARP
        self.parameters = np.zeros(max((o + s for o, s in kernel.parameters.values()), default=0), np.uint8)
        self.files = {b: np.empty((list(kernel.registers.values()).count(b), size), UNSIGNED[b]) for b in UNSIGNED}
        rows = {bits: iter(file) for bits, file in self.files.items()}
        self.registers = {name: next(rows[bits]) for name, bits in kernel.registers.items()}
        self.shared = np.empty(blocks * self.shared_bytes + 16, np.uint8)
        self.local_bytes = -(-sum(s for _, s in kernel.local.values()) // 16) * 16
        self.local = np.empty(size * self.local_bytes + 16, np.uint8)
        small = [i.op[-1] for i in kernel.code if i.op[0] in ("ld", "st") and i.op[-1][1:] in ("8", "16")]
        self.word = 1 if small else WORD
        words = blocks * self.shared_bytes // self.word + 16
        self.touched = {way: (np.empty(words, np.int64), np.empty(words, np.int64)) for way in CONFLICTS}
        self.steps: list = [None] * len(kernel.code)  # decoded where they are first met

    def run(self, blocks: np.ndarray, parameters: bytes) -> int:
        """Steps executed until every thread of these blocks has left."""
        self.parameters[:] = np.frombuffer(parameters, np.uint8)
        within = np.tile(np.arange(self.threads), len(blocks))
        self.special = {"%laneid": within % WARP, "%warpid": within // WARP}
        for name, at, shape in (("tid", within, self.block), ("ctaid", blocks[self.block_of], self.grid)):
            places = (at % shape[0], at // shape[0] % shape[1], at // (shape[0] * shape[1]))
            self.special |= {f"%{name}.{axis}": p for axis, p in zip("xyz", places, strict=True)}
            self.special |= {f"%n{name}.{axis}": np.full(self.size, n) for axis, n in zip("xyz", shape, strict=True)}
        self.special["%globaltimer"] = np.full(self.size, 1 << 40)
        for bits, file in self.files.items():
            file[...] = 0xEEEEEEEEEEEEEEEE % (1 << bits)
        self.shared[:], self.local[:] = FRESH_SHARED, FRESH_SHARED
        self.pc = np.zeros(self.size, np.int64)
        self.status = np.full(self.size, RUNNING, np.int8)
        self.committed = np.zeros(self.size, np.int64)
        self.copies: list[tuple] = []
        self.epoch = np.zeros(len(blocks), np.int64)  # barriers each block has passed
        for when, whom in self.touched.values():
            when[:], whom[:] = NOBODY, NOBODY
        self.spun = False
        memory = self.memory
        memory.launches += 1
        if memory.written is None:
            memory.written = np.zeros(len(memory.data), np.int64), np.zeros(len(memory.data), np.int32)
        with np.errstate(all="ignore"):
            return self._run()

    def _decode(self, instruction: Instruction):
        """("bra", predicate, target), ("bar" or "exit", predicate) or the function of a mask."""
        op, predicate = instruction.op, self.predicate(instruction.predicate)
        if op[0] == "bra":
            return "bra", predicate, self.kernel.labels[instruction.operands[0]]
        if op[0] in ("ret", "exit"):
            return "exit", predicate
        if op in BARRIERS:
            if instruction.operands != ("0",):
                raise NotImplementedError(f"{self.kernel.name}: barrier of some threads, {instruction.text}")
            return "bar", predicate
        step = ptx_ops.decode(self, instruction)
        if predicate is None:
            return step

        def guarded(mask):
            held = predicate() if mask is None else predicate() & mask
            if held.any():
                step(None if held.all() else held)

        return guarded

    def predicate(self, text: str):
        if not text:
            return None
        value = self.registers[text.lstrip("!")]
        return (lambda: ~value) if text[0] == "!" else (lambda: value)

    def _run(self) -> int:
        done, steps = 0, self.steps
        while True:
            running = self.status == RUNNING
            if not running.any():
                if not (self.status == PARKED).any():
                    return done
                self._open_barriers()
                continue
            waiting = self.pc[running]
            at = int(waiting.min())
            if self.spun:  # whoever looks at memory again and again lets another go first
                at, self.spun = int(min((p for p in waiting if p > at), default=at)), False
            group = running & (self.pc == at)
            rest = self.pc[running & ~group]
            rest = rest[rest > at]
            limit = int(rest.min()) if len(rest) else len(steps)
            mask = None if group.all() else group
            while at < limit:
                self.at, step = at, steps[at]
                if step is None:
                    step = steps[at] = self._decode(self.kernel.code[at])
                done += 1
                if not isinstance(step, tuple):
                    step(mask)
                    at += 1
                    continue
                at = self._leave(step, at, group)
                if at < 0:
                    break
            if at >= 0:
                self.pc[group & (self.status == RUNNING)] = at

    def _leave(self, step: tuple, at: int, group: np.ndarray) -> int:
        """Where the whole group goes on; -1 where it parts, its program counters being set."""
        taken = group if step[1] is None else group & step[1]()
        if not taken.any():
            return at + 1
        if step[0] == "bra" and (taken == group).all() and not self.spun:
            return step[2]
        self.pc[group] = at + 1
        if step[0] == "bra":
            self.pc[taken] = step[2]
        elif step[0] == "bar":
            self.pc[taken] = at
            self.status[taken] = PARKED
        else:
            self.status[taken] = DONE
        return -1

    def _open_barriers(self) -> None:
        parked = self.status == PARKED
        for block in np.unique(self.block_of[parked]):
            here = parked & (self.block_of == block)
            places = np.unique(self.pc[here])
            if len(places) > 1:
                lines = "; ".join(self.kernel.code[p].text + f" (instruction {p})" for p in places)
                raise Fault(f"{self.kernel.name}: threads of one block wait at different barriers: {lines}")
            self.epoch[block] += 1
        self.pc[parked] += 1
        self.status[parked] = RUNNING

    def fault(self, what: str) -> Fault:
        return Fault(f"{self.kernel.name}, instruction {self.at}, {self.kernel.code[self.at].text}: {what}")

    def threads_in(self, mask) -> np.ndarray:
        return np.arange(self.size) if mask is None else np.flatnonzero(mask)

    def whole_warps(self, mask, members=None) -> np.ndarray:
        """Threads in whole warps, (warps, 32). A fault where a lane is missing."""
        who = self.threads_in(mask)
        warps = np.unique(self.warp_of[who])
        if len(who) != len(warps) * WARP:
            raise self.fault("not all lanes of a warp are here")
        return who.reshape(-1, WARP)

    # ------------------------------------------------------------------------------------------ memory

    def place(self, space: str, who: np.ndarray, address: np.ndarray, size: int, way: str) -> tuple:
        """The array of bytes that holds these addresses of one space, and where in it."""
        if (address % size).any():
            bad = int(address[address % size != 0][0])
            raise self.fault(f"address {bad:#x} is not a multiple of {size}")
        address = address.astype(np.int64)
        if space in ("global", "const"):
            at = address - GLOBAL_BASE
            owned = self.memory.owned
            outside = (at < 0) | (at + size > len(owned))
            edges = np.clip(np.stack([at, at + size - 1]), 0, len(owned) - 1)
            least = owned[edges].min(0)
            if (outside | (least == 0)).any():
                raise self.fault(f"{size} bytes at {int(address[outside | (least == 0)][0]):#x} belong to nobody")
            if way != "read" and (least < 2).any():
                raise self.fault(f"{size} bytes at {int(address[least < 2][0]):#x} are read only")
            self._look_global(who, at, size, way)
            return self.memory.data, at
        room, base = (
            (self.shared_bytes, self.block_of) if space == "shared" else (self.local_bytes, np.arange(self.size))
        )
        outside = (address < 0) | (address + size > room)
        if outside.any():
            raise self.fault(f"byte {int(address[outside][0])} of {room} of {space} memory")
        at = base[who] * room + address
        if space == "shared":
            self._look(who, at, size, way)
        return (self.shared if space == "shared" else self.local), at

    def split(self, space: str, who: np.ndarray, address: np.ndarray):
        """(space, which of `who`, address there) for an instruction that may name none."""
        if space:
            return [(space, slice(None), address)]
        shared = (address >= SHARED_BASE) & (address < SHARED_BASE + SPACE_BYTES)
        local = (address >= LOCAL_BASE) & (address < LOCAL_BASE + SPACE_BYTES)
        parts = (("shared", shared, SHARED_BASE), ("local", local, LOCAL_BASE), ("global", ~(shared | local), 0))
        return [(name, which, address[which] - base) for name, which, base in parts if which.any()]

    def load(self, space: str, who: np.ndarray, address: np.ndarray, size: int) -> np.ndarray:
        """(len(who), size) bytes."""
        out = np.empty((len(who), size), np.uint8)
        for name, which, at in self.split(space, who, address):
            data, places = self.place(name, who[which], at, size, "read")
            out[which] = data[places[:, None] + np.arange(size)]
        return out

    def store(self, space: str, who: np.ndarray, address: np.ndarray, values: np.ndarray) -> None:
        size = values.shape[1]
        for name, which, at in self.split(space, who, address):
            data, places = self.place(name, who[which], at, size, "write")
            data[places[:, None] + np.arange(size)] = values[which]

    # ------------------------------------------------------------------------------------------ who touched what

    def _look(self, who: np.ndarray, at: np.ndarray, size: int, way: str) -> None:
        """Remember who does what to shared memory; a fault where another warp did since the last barrier."""
        words = (at[:, None] // self.word + np.arange(max(1, size // self.word))).reshape(-1)
        many = len(words) // len(who) if len(who) else 1
        warps, now = np.repeat(self.warp_of[who], many), np.repeat(self.epoch[self.block_of[who]], many)
        for theirs in CONFLICTS[way]:
            when, whom = self.touched[theirs]
            other = (when[words] == now) & (whom[words] != warps)
            if other.any():
                byte = int(words[other][0]) * self.word % self.shared_bytes
                raise self.fault(f"{way} of byte {byte} of shared memory, {theirs} by another warp: no barrier between")
        when, whom = self.touched[way]
        apart = (when[words] == now) & (whom[words] != warps)
        when[words], whom[words] = now, warps
        apart |= whom[words] != warps
        if way == "write" and apart.any():
            raise self.fault(f"two warps write byte {int(words[apart][0]) * self.word % self.shared_bytes} at once")
        whom[words[apart]] = MANY

    def _look_global(self, who: np.ndarray, at: np.ndarray, size: int, way: str) -> None:
        """A fault where another warp of the same block wrote there since the block's last barrier."""
        if way == "atomic":
            return
        many = max(1, size // self.word)
        words = (at[:, None] // self.word + np.arange(many)).reshape(-1)
        now = np.repeat(self.memory.launches * MOST_BARRIERS + self.epoch[self.block_of[who]], many)
        warps, (when, whom) = np.repeat(self.warp_of[who], many), self.memory.written
        a_block = self.threads // WARP
        apart = (when[words] == now) & (whom[words] != warps) & (whom[words] // a_block == warps // a_block)
        if apart.any():
            address = int(words[apart][0]) * self.word + GLOBAL_BASE
            raise self.fault(f"{way} of {address:#x}, write by another warp: no barrier between")
        if way == "write":
            when[words], whom[words] = now, warps

    # ------------------------------------------------------------------------------------------ asynchronous copies

    def copy_async(self, mask, to: np.ndarray, values: np.ndarray) -> None:
        """Poisons now what it is to bring: (threads, 16) bytes for shared address `to`."""
        who = self.threads_in(mask)
        self.store("shared", who, to, np.full_like(values, POISON))
        self.copies.append((who, to, values, self.committed[who].copy()))

    def commit(self, mask) -> None:
        self.committed[self.threads_in(mask)] += 1

    def wait(self, mask, groups: int) -> None:
        """Of these threads, all but the last so many committed groups arrive; of no group (-1: all) what was begun."""
        here = np.zeros(self.size, bool)
        here[self.threads_in(mask)] = True
        left = []
        for who, to, values, group in self.copies:
            due = here[who] & ((group < self.committed[who] - groups) | (groups < 0))
            if due.any():
                self.store("shared", who[due], to[due], values[due])
            if not due.all():
                left.append((who[~due], to[~due], values[~due], group[~due]))
        self.copies = left

    def symbol(self, name: str) -> int | None:
        """What stands for a name: an offset in its space, an address of global memory; None where there is none."""
        if name in self.kernel.shared:
            at = self.kernel.shared[name]
            return self.dynamic_at if at < 0 else at
        if name in self.kernel.local:
            return self.kernel.local[name][0]
        return self.memory.variables.get(name)

    def address(self, operand: str):
        """A function that gives the addresses `[register or symbol + bytes]` of all threads."""
        name, sign, offset = re.fullmatch(r"\[([^+\-\]]+)(?:([+-])-?(\d+))?\]", operand.replace("+-", "-")).groups()
        bytes_ = int(offset or 0) * (-1 if sign == "-" else 1)
        name = name.strip()
        if name in self.registers:
            register = self.registers[name]
            return lambda: register.astype(np.int64) + bytes_
        known = self.symbol(name)
        if known is None:
            raise NotImplementedError(f"{self.kernel.name}: {operand} names nothing")
        return lambda: np.full(self.size, known + bytes_, np.int64)

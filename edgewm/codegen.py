"""Expression graphs to C++ functors: one `op_` call a node, in the bundle's own source, compiled with its kernels.

A functor knows, for each operand, how its lanes are read: V neighbours, B one number for all, G a stride apart. What it
computes is spelled by the op table: an op with an `expand` becomes a function of its own, written once a bundle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from . import arithmetic  # noqa: F401  (fills the table's transcendental rows)
from .expr import input as input_leaf
from .ops import TABLE, const_value
from .paths import KERNELS, RUNTIME
from .program import Graph, Node, order

C_TYPE = {
    "f32": "float", "bf16": "Bf16", "i32": "int32_t", "u32": "uint32_t", "i8": "int8_t", "u8": "uint8_t",
    "bool": "int32_t",
}  # fmt: skip
# A bf16 is the float that it stands for.
REGISTER = {
    "f32": "f32v", "bf16": "f32v", "i32": "i32v", "u32": "u32v", "i8": "i32v", "u8": "i32v", "bool": "i32v"
}  # fmt: skip
CASTS = {"f32": "to_f32", "bf16": "to_bf16", "u32": "to_u32"}  # to_i32: all others, which live as that
# A bitcast, where a lane is a part of a vector; where it is a number of its own, see kernels/gpu/lanes_cuda.h.
BITCASTS = "\n".join(f"template <class V> inline {v} as_{d}(V x) {{ return ({v})x; }}"
                     for d, v in (("f32", "f32v"), ("i32", "i32v"), ("u32", "u32v")))  # fmt: skip
EXPANDED = tuple(name for name, row in TABLE.items() if row.expand is not None)

DIRECT = "  static constexpr bool direct = true;\n"  # of a prologue whose one operand is read in place

Mode = str  # "V", "B" or "G"


def statements(outputs: Sequence[Node], leaves: Mapping[Node, str]) -> tuple[list[str], list[str]]:
    """C++ lines that compute `outputs`, and the name of each; `leaves` gives the expression of every input."""
    lines: list[str] = []
    names: dict[Node, str] = {}
    for node in order(outputs):
        if node in leaves:
            names[node] = leaves[node]
            continue
        name = f"t{len(lines)}"
        arguments = ", ".join(names[s] for s in node.sources)
        lines.append(f"const {REGISTER[node.dtype]} {name} = {_call(node, arguments)};")
        names[node] = name
    return lines, [names[o] for o in outputs]


def _call(node: Node, arguments: str) -> str:
    if node.op == "const":
        value = const_value(node)
        if node.dtype == "f32":
            if abs(value) == float("inf"):
                return f"as_f32(splat({'0xff800000u' if value < 0 else '0x7f800000u'}))"
            return f"splat({value.hex()}f)"
        return f"splat(({C_TYPE[node.dtype]}){int(value)}{'u' if node.dtype == 'u32' else ''})"
    if node.op == "cast":
        return f"{CASTS.get(node.dtype, 'to_i32')}({arguments})"
    if node.op == "bitcast":
        return f"as_{ {'f32': 'f32', 'u32': 'u32'}.get(node.dtype, 'i32') }({arguments})"
    return f"op_{node.op}({arguments})"


def expanded_functions() -> str:
    """One inline function for each op that the table defines by other ops."""
    text = []
    for name in EXPANDED:
        x = input_leaf("x", (1,))
        lines, (result,) = statements([TABLE[name].expand(x)], {x: "x"})
        body = "\n  ".join(lines)
        text.append(f"inline f32v op_{name}(f32v x) {{\n  {body}\n  return {result};\n}}")
    return "\n".join(text)


class Functor:
    """The text of one functor: its operands in order, how each is read or written, and its expression."""

    def __init__(self, graph: Graph, modes: Mapping[str, Mode], at: str):
        self.graph = graph
        self.modes = modes
        self.at = at  # the inner loop's index as a C++ expression
        read = [n for n in graph.order() if n.op == "input" and n["name"] in modes]
        self.inputs = sorted((n for n in read), key=lambda n: n["name"])

    def leaves(self, first: int = 0, **given: str) -> dict[Node, str]:
        found = {n: given[n["name"]] for n in self.graph.order() if n.op == "input" and n["name"] in given}
        for i, node in enumerate(self.inputs):
            mode = self.modes[node["name"]]
            tile = ", t" if mode == "G" else ""
            found[node] = f"load_{mode.lower()}<{C_TYPE[node.dtype]}>(v[{first + i}], {self.at}, r{tile})"
        return found

    def body(self, first: int = 0, **given: str) -> tuple[str, str]:
        """The statements and the name of the result; each operand is loaded once."""
        leaves = self.leaves(first, **given)
        loads, names = [], {}
        for i, (node, text) in enumerate(leaves.items()):
            if text.startswith("load_"):
                loads.append(f"const {REGISTER[node.dtype]} x{i} = {text};")
                names[node] = f"x{i}"
            else:
                names[node] = text
        (root,) = self.graph.outputs.values()
        lines, (result,) = statements([root], names)
        return "\n    ".join(loads + lines), result


def store(dtype: str, mode: Mode, operand: int, at: str, value: str) -> str:
    tile = ", t" if mode == "G" else ""
    return f"store_{mode.lower()}<{C_TYPE[dtype]}>(v[{operand}], {at}, r{tile}, {value});"


def functors_text(functors: Mapping[str, str]) -> str:
    """Functors (text -> name) as structs, and what they call."""
    structs = "\n".join(f"struct {name} {{\n{text}}};" for text, name in functors.items())
    return f"{expanded_functions()}\n{structs}\n"


def value_functor(functor: Functor, direct: bool = False) -> str:
    """`P`: element i of the inner loop."""
    lines, result = functor.body()
    flag = DIRECT if direct else ""
    return (
        f"  static constexpr int inputs = {len(functor.inputs)};\n{flag}"
        f"  static inline f32v value(const View* v, int64_t i, int r, Tile t) {{\n"
        f"    (void)v, (void)i, (void)r, (void)t;\n    {lines}\n    return {result};\n  }}\n"
    )


def store_functor(functor: Functor, out_dtype: str, out_mode: Mode) -> str:
    """`E`: takes the core's result y, computes and stores."""
    lines, result = functor.body(core="y")
    n = len(functor.inputs)
    return (
        f"  static constexpr int operands = {n + 1};\n"
        f"  static inline void store(const View* v, int64_t i, int r, Tile t, f32v y) {{\n"
        f"    (void)r, (void)t;\n    {lines}\n    {store(out_dtype, out_mode, n, 'i', result)}\n  }}\n"
    )


def run_functor(functor: Functor, out_dtype: str, out_mode: Mode) -> str:
    """`map`'s E: no core. `run` is `value`, then `put`."""
    lines, result = functor.body()
    n = len(functor.inputs)
    (root,) = functor.graph.outputs.values()
    at = "const View* v, int64_t i, int r, Tile t"
    return (
        f"  static constexpr int operands = {n + 1};\n"
        f"  typedef {REGISTER[root.dtype]} Register;\n"
        f"  static inline Register value({at}) {{\n"
        f"    (void)v, (void)i, (void)r, (void)t;\n    {lines}\n    return {result};\n  }}\n"
        f"  static inline void put({at}, Register y) {{\n"
        f"    (void)r, (void)t;\n    {store(out_dtype, out_mode, n, 'i', 'y')}\n  }}\n"
        f"  static inline void run({at}) {{ put(v, i, r, t, value(v, i, r, t)); }}\n"
    )


def score_functor(functor: Functor) -> str:
    """`S`: an attention score from the product of a query and key j."""
    lines, result = functor.body(dot="dot")
    return (
        f"  static constexpr int inputs = {len(functor.inputs)};\n"
        f"  static inline f32v value(const View* v, int64_t i, int r, Tile t, f32v dot) {{\n"
        f"    (void)v, (void)i, (void)r, (void)t;\n    {lines}\n    return {result};\n  }}\n"
    )


def fold_functor(terms: Sequence[Functor], combine: str, epilogue: Functor, out_dtype: str, out_mode: Mode) -> str:
    """`reduce`'s F: the terms of step k, the accumulator that begins with or takes them, and what is stored of it."""
    first, loads = 0, []
    for i, term in enumerate(terms):
        lines, result = term.body(first)
        scoped = f"const auto term{i} = [&] {{\n    {lines}\n    return {result};\n    }}();"
        loads.append(scoped)
        first += len(term.inputs)
    text = "\n    ".join(loads)
    all_terms = ", ".join(f"term{i}" for i in range(len(terms)))
    (root,) = terms[0].graph.outputs.values()
    register = REGISTER[root.dtype]
    begin, step = {
        "sum": (f"op_add({register}{{}}, p.x[0])", "op_add(acc, p.x[0])"),
        "reduce_max": ("p.x[0]", "op_max(p.x[0], acc)"),
        "fma": ("op_fma(p.x[0], p.x[1], f32v{})", "op_fma(p.x[0], p.x[1], acc)"),
    }[combine]
    lines, result = epilogue.body(first, core="acc")
    out = first + len(epilogue.inputs)
    signature = "const View* v, int64_t k, int r, Tile t"
    return (
        f"  static constexpr int operands = {out + 1}, terms = {len(terms)};\n"
        f"  typedef {register} Register;\n"
        f"  struct Terms {{ Register x[{len(terms)}]; }};\n"
        f"  static inline Terms at({signature}) {{\n"
        f"    (void)k, (void)t;\n    {text}\n    return {{{{{all_terms}}}}};\n  }}\n"
        f"  static inline Register begin(Terms p) {{ return {begin}; }}\n"
        f"  static inline Register step(Register acc, Terms p) {{ return {step}; }}\n"
        f"  static inline Register first({signature}) {{ return begin(at(v, k, r, t)); }}\n"
        f"  static inline Register next(Register acc, {signature}) {{ return step(acc, at(v, k, r, t)); }}\n"
        f"  static inline void store(const View* v, int r, Tile t, Register acc) {{\n"
        f"    (void)r, (void)t;\n    {lines}\n    {store(out_dtype, out_mode, out, '0', result)}\n  }}\n"
    )


class Source:
    """The generated source of one bundle: distinct functors and kernels, in order of first use."""

    def __init__(self) -> None:
        self.functors: dict[str, str] = {}  # text -> name
        self.kernels: dict[str, int] = {}  # instantiation -> index
        self.families: dict[str, None] = {}
        self.regions: dict[tuple[int, ...], None] = {}  # kernels of a region's calls, in order

    def functor(self, text: str) -> str:
        return self.functors.setdefault(text, f"Functor{len(self.functors)}")

    def kernel(self, family: str, *arguments: str) -> int:
        """Index of `family<arguments...>` in the bundle's kernel table."""
        self.families[family] = None
        instance = f"{family}<{', '.join(arguments)}>" if arguments else family
        return self.kernels.setdefault(instance, len(self.kernels))

    def kernels_text(self) -> str:
        """The translation unit of the kernels. Nothing in it depends on weights or on how many candidates there are, so
        that bundles of models alike are compiled once."""
        includes = "\n".join(f'#include "{family}.cc"' for family in sorted(self.families))
        table = f"extern const Kernel kernels[] = {{{', '.join(self.kernels)}}};\n{self._names_text()}"
        body = f"{BITCASTS}\n{functors_text(self.functors)}{table}"
        return f'#include "lanes.h"\n{includes}\nnamespace ewm {{\n{body}}}  // namespace ewm\n'

    def names_text(self) -> str:
        """The unit of a library without kernels, which a GPU has: their names."""
        return f'#include "kernel.h"\nnamespace ewm {{\n{self._names_text()}}}  // namespace ewm\n'

    def _names_text(self) -> str:
        names = ", ".join(f'"{k}"' for k in self.kernels)
        return (
            f"extern const char* const kernel_names[] = {{{names}}};\n"
            f"extern const uint32_t kernel_count = {len(self.kernels)};\n"
        )

    def sha256(self) -> bytes:
        """Identity of the kernels: their functors and the templates they instantiate."""
        digest = hashlib.sha256(self.kernels_text().encode())
        for path in sorted([*KERNELS.glob("*.cc"), *KERNELS.glob("*.h"), RUNTIME / "lanes.h"]):
            digest.update(path.read_bytes())
        return digest.digest()


def identity_text(target: str, kernels_sha256: bytes, program_sha256: bytes) -> str:
    """The unit that says which machine a library is for, and of which program the calls are that index its kernels."""
    digests = "".join(
        f"extern const uint8_t {name}[32] = {{{', '.join(map(str, digest))}}};\n"
        for name, digest in (("kernels_sha256", kernels_sha256), ("program_sha256", program_sha256))
    )
    target_name = f'extern const char target_name[32] = "{target}";\n'
    return f'#include "kernel.h"\nnamespace ewm {{\n{digests}{target_name}}}  // namespace ewm\n'

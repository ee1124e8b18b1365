"""Partition every graph into kernel calls: cores matched from kernels/, element-wise neighbours absorbed by op class.

A core is a product, an attention, a reduction or a planner op. What follows it element by element and is read by nobody
else becomes its epilogue; what precedes it element by element is evaluated again in its prologue, unless that is
expensive and read more than once. Views become strides of the operands; no view is ever computed.
"""

from __future__ import annotations

from .. import expr as e
from ..kernel import load, match
from ..ops import TABLE, make
from ..program import Graph, Node, Program, order, users

EXPENSIVE = frozenset({"exp", "log", "erf", "tanh", "gelu", "sin2pi", "cos2pi", "div", "sqrt"})
DEPTH_LIMIT = 120  # element-wise nodes on one path of a body; beyond that a value is stored
OPERAND_LIMIT = 10  # operands of one part of a kernel; an op has three sources and a call 32 operands
# Rows are rounded where they are read, by each core for itself.
REPEATABLE = ("product_i8", "product_rounded", "product_bf16", "product_fp16")
MATCHED = ("attention", *REPEATABLE)  # families recognised by their reference, largest first
SERIAL = ("topk", "take")  # one thread, once


def fuse_kernels(program: Program) -> Program:
    return program.with_(entries={name: fuse(graph) for name, graph in program.entries.items()})


def fuse(graph: Graph) -> Graph:
    """The graph with every computing node inside a `kernel` node; leaves, views, `repeat` and `get` stay."""
    return _Partition(graph).build()


class _Partition:
    """The grouping of one graph. `stored` are the nodes whose value reaches memory; each roots one kernel."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.nodes = graph.order()
        self.users = users(graph.outputs.values())
        self.outputs = set(graph.outputs.values())
        self.core: dict[Node, tuple[str, dict[str, Node]]] = {}  # root of a core -> family and bound leaves
        self.inside: set[Node] = set()  # nodes swallowed by a core
        self.chain: dict[Node, list[Node]] = {}  # core -> itself and the element-wise nodes of its epilogue
        self.done: dict[Node, Node] = {}  # value in memory -> what stands for it in the new graph
        self.find_cores()
        self.grow_epilogues()
        self.core_of = {chain[-1]: core for core, chain in self.chain.items()}
        self.stored = self.choose_stored()

    # ------------------------------------------------------------------ grouping

    def find_cores(self) -> None:
        interiors: list[set[Node]] = []
        for node in self.nodes:
            for family in MATCHED:
                bound = match(family, node)
                interior = bound and self._interior(family, node, bound)
                alone = interior and (family in REPEATABLE or self._closed(node, interior))
                if alone and not (interior - {node}) & self.core.keys():
                    self.core[node] = (family, bound)
                    interiors.append(interior)
                    break
        self.inside = self._swallowed(interiors)
        for node in self.nodes:
            if node in self.inside or node in self.core:
                continue
            if node.op == "matmul":
                self.core[node] = ("product" if _under_views(node.sources[1]).op == "weight" else "reduce", {})
            elif TABLE[node.op].kind == "reduction":
                self.core[node] = ("reduce", {})
            elif node.op in SERIAL:
                self.core[node] = (node.op, {})

    def _swallowed(self, interiors: list[set[Node]]) -> set[Node]:
        """Nodes that only matched cores compute, each for itself where several share them."""
        homes: dict[Node, list[set[Node]]] = {}
        for interior in interiors:
            for node in interior:
                homes.setdefault(node, []).append(interior)
        inside: set[Node] = set()
        for node in reversed(self.nodes):
            if node not in homes or node in self.core or node in self.outputs:
                continue
            if all(
                any(u in home for home in homes[node]) and (u in inside or u in self.core) for u in self.users[node]
            ):
                inside.add(node)
        return inside

    def _interior(self, family: str, root: Node, bound: dict[str, Node]) -> set[Node] | None:
        """The nodes between the core's root and its leaves, or None where the family's kernel cannot take them."""
        if family == "attention":
            dot = score_dot(bound["scores"])
            return None if dot is None else _between(root, dot, {dot, bound["v"]})
        if bound["w"].op != "weight":
            return None
        return _between(root, bound["x"], set(bound.values())) - {bound["x"]}

    def _closed(self, root: Node, interior: set[Node]) -> bool:
        """Whether no interior value is read outside the core."""
        return all(n is root or (n not in self.outputs and interior.issuperset(self.users[n])) for n in interior)

    def grow_epilogues(self) -> None:
        claimed: set[Node] = set(self.inside)
        position = {node: i for i, node in enumerate(self.nodes)}
        for core, (family, _) in self.core.items():
            self.chain[core] = [core] if family in SERIAL else self._epilogue(core, claimed, position)
            claimed.update(self.chain[core])

    def _epilogue(self, core: Node, claimed: set[Node], position: dict[Node, int]) -> list[Node]:
        """The core and the element-wise nodes behind it, up to the last one that all its readers lead to (x in gelu(x)
        has two, which meet again)."""
        members, length = [core], 1
        pending = set(self.users[core])
        reads: dict[Node, frozenset[Node]] = {core: frozenset()}
        while pending and members[-1] not in self.outputs and len(members) < DEPTH_LIMIT:
            node = min(pending, key=position.__getitem__)
            if TABLE[node.op].kind != "elementwise" or node.shape != core.shape or node in claimed:
                break
            reads[node] = _operands(node, reads)
            if len(reads[node]) > OPERAND_LIMIT:
                break
            pending.remove(node)
            members.append(node)
            if not pending:
                length = len(members)
            pending.update(self.users[node])
        return members[:length]

    def choose_stored(self) -> set[Node]:
        stored = set(self.core_of)
        absorbed = self.inside.union(*map(set, self.chain.values())) - stored
        depth: dict[Node, int] = {}
        reads: dict[Node, frozenset[Node]] = {}  # of what is computed where it is read: the operands it brings along
        for node in self.nodes:
            kind = TABLE[node.op].kind
            if node in stored or node in absorbed:
                continue
            depth[node] = 1 + max((depth.get(s, 0) for s in node.sources), default=0)
            if kind == "view" and node.sources[0] in reads:
                reads[node] = reads[node.sources[0]]
            if kind == "elementwise":
                reads[node] = _operands(node, reads)
                shared = node.op in EXPENSIVE and len(set(self.users[node])) > 1
                if shared or depth[node] > DEPTH_LIMIT or len(reads[node]) > OPERAND_LIMIT:
                    stored.add(node)
                    depth[node] = 0
                    del reads[node]
            elif kind == "concat":
                stored.add(node)
            if kind == "concat" or node.op == "repeat":
                stored.update(self._needed(node.sources))
        stored.update(self._needed(self.outputs))
        for core, (family, bound) in self.core.items():
            if family in SERIAL:
                stored.update(self._needed(core.sources))
            elif family == "attention":  # keys and values are read many times: never computed again
                stored.update(self._needed((score_dot(bound["scores"]).sources[1], bound["v"])))
        return stored

    def _needed(self, nodes) -> list[Node]:
        """The element-wise nodes that must be in memory for these (possibly through views) to be operands."""
        return [n for n in map(_under_views, nodes) if TABLE[n.op].kind == "elementwise"]

    # ------------------------------------------------------------------ building

    def build(self) -> Graph:
        return Graph({name: self.lowered(node) for name, node in self.graph.outputs.items()})

    def lowered(self, root: Node) -> Node:
        """What stands for a stored value, a leaf, a control node or a view of one in the new graph."""
        for node in order(root):
            kind = TABLE[node.op].kind
            if node in self.done:
                continue
            if kind == "leaf":
                self.done[node] = node
            elif node.op == "repeat":
                sources = tuple(self.done[s] for s in node.sources)
                self.done[node] = make("repeat", *sources, **{**dict(node.attrs), "body": fuse(node["body"])})
            elif node.op == "get":
                self.done[node] = make("get", self.done[node.sources[0]], name=node["name"])
            elif node in self.stored:
                self.done[node] = self.kernel(node)
            elif kind == "view" and node.sources[0] in self.done:
                self.done[node] = make(node.op, self.done[node.sources[0]], **dict(node.attrs))
        return self.done[root]

    def kernel(self, root: Node) -> Node:
        if root in self.core_of:
            return self.core_kernel(self.core_of[root], root)
        if root.op == "concat":
            return make("concat", *(self.done[s] for s in root.sources), axis=root["axis"])
        body = _Body(self.done)
        y = body.expression(root)
        return body.kernel("map", y, epilogue=Graph({"y": y}))

    def core_kernel(self, core: Node, root: Node) -> Node:
        family, bound = self.core[core]
        if family in SERIAL:
            return make(core.op, *(self.done[s] for s in core.sources), **dict(core.attrs))
        body = _Body(self.done)
        if family in REPEATABLE:
            result, attrs = self._narrow(family, body, bound)
        else:
            result, attrs = getattr(self, "_" + family)(body, core, bound)
        inner = e.input("core", core.shape, core.dtype)
        y = body.expression(root, stop={core: inner})
        whole = e.inline(Graph({"y": y}), {"core": result})["y"]
        return body.kernel(family, whole, epilogue=Graph({"y": y}), **attrs)

    def _product(self, body: _Body, core: Node, bound: dict) -> tuple[Node, dict]:
        x, w = body.expression(core.sources[0]), body.param(self.done[core.sources[1]])
        return load("product").reference(x, w), {"left": Graph({"x": x}), "packed": (w["name"],)}

    def _narrow(self, family: str, body: _Body, bound: dict) -> tuple[Node, dict]:
        """A product whose weights are held in fewer bits: its leaves are an activation, and what is packed."""
        x, held = body.expression(bound["x"]), [body.param(bound[n]) for n in bound if n != "x"]
        packed = tuple(leaf["name"] for leaf in held)
        return load(family).reference(x, *held), {"left": Graph({"x": x}), "packed": packed}

    def _attention(self, body: _Body, core: Node, bound: dict) -> tuple[Node, dict]:
        dot = score_dot(bound["scores"])
        q = body.expression(dot.sources[0])
        k, v = body.param(self.done[dot.sources[1]]), body.param(self.done[bound["v"]])
        score = body.expression(bound["scores"], stop={dot: e.input("dot", dot.shape)})
        scores = e.inline(Graph({"s": score}), {"dot": e.matmul(q, k)})["s"]
        parts = {"left": Graph({"x": q}), "score": Graph({"s": score}), "packed": (k["name"], v["name"])}
        return load("attention").reference(scores, v), parts

    def _reduce(self, body: _Body, core: Node, bound: dict) -> tuple[Node, dict]:
        left = body.expression(core.sources[0])
        if core.op == "matmul":  # two activations: a chain of multiply-adds
            right = body.expression(core.sources[1])
            parts = {"left": Graph({"x": left}), "right": Graph({"x": right}), "combine": "fma"}
            return e.matmul(left, right), parts
        parts = {"left": Graph({"x": left}), "combine": core.op, "axis": core["axis"]}
        return make(core.op, left, axis=core["axis"]), parts


class _Body:
    """The expression of one kernel while it is built: its parameters and what they are bound to."""

    def __init__(self, done: dict[Node, Node]):
        self.done = done
        self.sources: dict[Node, Node] = {}  # bound node -> its parameter

    def param(self, source: Node) -> Node:
        if source.op == "const":
            return source
        if source not in self.sources:
            self.sources[source] = e.input(f"p{len(self.sources)}", source.shape, source.dtype)
        return self.sources[source]

    def expression(self, node: Node, stop: dict[Node, Node] | None = None) -> Node:
        """`node` over parameters; views met on the way are pushed to the parameters, where they become strides."""
        memo: dict[tuple[Node, tuple], Node] = {}

        def pull(node: Node, views: tuple) -> Node:
            if (node, views) not in memo:
                memo[node, views] = fetch(node, views)
            return memo[node, views]

        def fetch(node: Node, views: tuple) -> Node:
            if stop and node in stop and not views:
                return stop[node]
            if node in self.done:
                value = self.done[node]
                for op, attrs in reversed(views):
                    value = make(op, value, **dict(attrs))
                return self.param(value)
            if TABLE[node.op].kind == "view":
                return pull(node.sources[0], (*views, (node.op, node.attrs)))
            widened = (*views, ("expand", (("shape", node.shape),)))
            sources = [
                s if s.op == "const" else pull(s, widened if views and s.shape != node.shape else views)
                for s in node.sources
            ]
            return make(node.op, *sources, **dict(node.attrs))

        return pull(node, ())

    def kernel(self, family: str, y: Node, **parts: object) -> Node:
        return make("kernel", *self.sources, family=family, body=Graph({"y": y}), **parts)


def _operands(node: Node, reads: dict[Node, frozenset[Node]]) -> frozenset[Node]:
    """What an element-wise node reads: its sources, or what those bring along."""
    own = (reads.get(s, frozenset() if s.op == "const" else frozenset((s,))) for s in node.sources)
    return frozenset().union(*own)


def _under_views(node: Node) -> Node:
    while TABLE[node.op].kind == "view":
        node = node.sources[0]
    return node


def _between(root: Node, leaf: Node, stops: set[Node]) -> set[Node]:
    """Nodes under `root`, not below `stops`, from which `leaf` is reached; both ends included."""
    reach: dict[Node, bool] = {leaf: True, **{s: s is leaf for s in stops}}
    stack = [root]
    while stack:
        node = stack[-1]
        todo = [s for s in node.sources if s not in reach]
        if node in reach or not todo:
            stack.pop()
            reach.setdefault(node, any(reach[s] for s in node.sources))
        else:
            stack.extend(todo)
    return {node for node, reaches in reach.items() if reaches}


def score_dot(scores: Node) -> Node | None:
    """The one product q k^T under an element-wise expression of attention scores, or None."""
    dots: list[Node] = []
    seen: set[Node] = set()
    stack = [scores]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op == "matmul" and node.shape == scores.shape and node.dtype == "f32":
            dots.append(node)
        elif TABLE[node.op].kind == "elementwise":
            stack.extend(node.sources)
    return dots[0] if len(dots) == 1 else None

"""From a torch module to a graph: `torch.export` of one entry, then one row of the aten table for each operator.

The exported graph is functional and keeps high-level operators whole (linear, layer_norm, attention, ...). What depends
on parameters alone is computed by torch here; what depends on an input becomes ops.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from . import aten_layers, aten_views  # noqa: F401  (their rows enter the table)
from . import expr as e
from .aten import DTYPES, RAW, TABLE, Refused
from .constants import Constant, Store, as_node
from .errors import EdgewmError
from .program import Graph, Node

# arguments that say where a tensor lives, not what it holds
PLACEMENT = {"layout", "device", "pin_memory", "memory_format", "non_blocking", "copy", "implicit"}
PLACEMENT |= {"cudnn_enabled", "cudnn_enable"}
# what held of shapes and dtypes while tracing holds ever after
FACTS = {"_assert_tensor_metadata", "_assert_scalar"}
KNOWN = FACTS | {"getitem"}


class _Entry(torch.nn.Module):
    def __init__(self, model: torch.nn.Module, call: Callable):
        super().__init__()
        self.model, self.call = model, call

    def forward(self, *args: torch.Tensor) -> Any:
        return self.call(self.model, *args)


def capture(
    module: torch.nn.Module,
    examples: Sequence[torch.Tensor],
    input_names: Sequence[str],
    output_names: Sequence[str],
    prefix: str = "",
    call: Callable | None = None,
    weights: Store | None = None,
) -> tuple[Graph, Store]:
    """The graph of `call(module, *examples)` (default: `module(*examples)`) in eval mode, and its weights by name.

    Inputs take the shapes and dtypes of `examples`. Weights are named after the state dict, with `prefix` before; they
    are added to `weights` when it is given, so that several entries share them. Raises EdgewmError for an operator
    outside the table (its name, the module's path), a weight that is not finite, and a module torch cannot export.
    """
    store: Store = {} if weights is None else weights
    exported = _export(module, tuple(examples), call or (lambda m, *xs: m(*xs)))
    values: dict[torch.fx.Node, Any] = {}
    inputs = iter(zip(input_names, examples, strict=True))
    states = _states(exported)
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            if node.name in states:
                name, tensor = states[node.name]
                values[node] = Constant(tensor, prefix + name, not name.startswith("const"), store)
            else:
                name, example = next(inputs)
                values[node] = e.input(name, example.shape, DTYPES[example.dtype])
        elif node.op == "call_function":
            values[node] = _translate(node, values, prefix, store)
        elif node.op == "output":
            found = [as_node(values[n]) if isinstance(n, torch.fx.Node) else n for n in node.args[0]]
    outputs = dict(zip(output_names, found, strict=True))
    return Graph(outputs), store


def _export(module: torch.nn.Module, examples: tuple, call: Callable) -> torch.export.ExportedProgram:
    with warnings.catch_warnings(), torch.no_grad(), _eval(module), _without_traces(), _uncompiled():
        warnings.simplefilter("ignore")
        try:
            exported = torch.export.export(_Entry(module, call), examples, strict=False)
            if _needs_lowering(exported):
                known = torch.export.default_decompositions().items()
                return exported.run_decompositions({op: f for op, f in known if _name(op) not in TABLE})
            return exported
        except (torch._dynamo.exc.UserError, RuntimeError, TypeError, ValueError, NotImplementedError) as fault:
            raise EdgewmError(
                f"torch cannot export this entry: {str(fault).strip().splitlines()[0]}",
                f"{type(module).__name__}, inputs {[tuple(x.shape) for x in examples]}",
                "avoid control flow that depends on values; every shape must follow from the inputs' shapes",
            ) from fault


@contextlib.contextmanager
def _without_traces() -> Iterator[None]:
    """No Python stack for each operator, which nobody reads: `_where` says which module it was called in."""
    config, name = torch.fx.config, "do_not_emit_stack_traces"  # which newer releases of torch know
    before = getattr(config, name, None)
    if before is not None:
        setattr(config, name, True)
    try:
        yield
    finally:
        if before is not None:
            setattr(config, name, before)


def _uncompiled() -> contextlib.AbstractContextManager:
    """The Python that torch writes for each graph on its way is not compiled before somebody runs it: nobody does."""
    try:
        from torch.fx._lazy_graph_module import _use_lazy_graph_module  # torch's own; without it capture takes longer
    except ImportError:
        return contextlib.nullcontext()
    return _use_lazy_graph_module(True)


def _needs_lowering(exported: torch.export.ExportedProgram) -> bool:
    """An operator that reads an input, or writes in place, is not in the table; torch's decompositions may help."""
    live: set[torch.fx.Node] = set()
    for node in exported.graph.nodes:
        if node.op == "placeholder" and node.name in exported.graph_signature.user_inputs:
            live.add(node)
        elif node.op == "call_function":
            reads = not live.isdisjoint(node.all_input_nodes)
            schema = getattr(node.target, "_schema", None)
            if (reads or (schema and schema.is_mutable)) and _name(node.target) not in TABLE.keys() | KNOWN:
                return True
            live.update([node] if reads else [])
    return False


@contextlib.contextmanager
def _eval(module: torch.nn.Module) -> Iterator[None]:
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        yield
    finally:
        for m in training:
            m.training = True


def _states(exported: torch.export.ExportedProgram) -> dict[str, tuple[str, torch.Tensor]]:
    """Placeholder name -> (state-dict name, tensor) of parameters, buffers and lifted constants."""
    found = {}
    for spec in exported.graph_signature.input_specs:
        if spec.target is not None:
            tensor = (exported.constants if spec.target in exported.constants else exported.state_dict)[spec.target]
            lifted = spec.kind == torch.export.graph_signature.InputKind.CONSTANT_TENSOR
            found[spec.arg.name] = ("const" if lifted else spec.target.removeprefix("model."), tensor)
    return found


def _translate(node: torch.fx.Node, values: dict, prefix: str, store: Store) -> Any:
    if node.target is operator.getitem:
        source = values[node.args[0]]
        return source[node.args[1]]
    name, schema = _name(node.target), getattr(node.target, "_schema", None)
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: values[n])
    if name in FACTS:
        return None
    tensors = _leaves((args, kwargs), Node | Constant)
    if not any(isinstance(t, Node) for t in tensors):
        return _fold(node.target, args, kwargs, store, prefix)
    if schema is None or name not in TABLE:
        raise EdgewmError(
            f"operator {node.target} is not in the table of ops",
            _where(node),
            "write that step with operators of edgewm/aten.py, or add a row there that says what it means",
        )
    bound = _bind(schema, args, kwargs)
    try:
        if extra := bound.keys() - inspect.signature(TABLE[name]).parameters.keys():
            raise Refused(", ".join(f"{k}={bound[k]!r}" for k in sorted(extra)))
        return TABLE[name](**(bound if name in RAW else _map(bound, as_node)))
    except Refused as reason:
        raise EdgewmError(
            f"operator {node.target} with {reason} is not covered", _where(node), "write that step another way"
        ) from reason


def _name(target: Any) -> str:
    return target.name().split("::")[-1].split(".")[0] if hasattr(target, "name") else target.__name__


def _bind(schema: Any, args: Sequence, kwargs: dict) -> dict[str, Any]:
    """Arguments by schema name; those at their default and those about placement are left out."""
    bound = {a.name: v for a, v in zip(schema.arguments, args, strict=False)} | kwargs
    defaults = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}

    def given(name: str, value: Any) -> bool:
        default = name in defaults and isinstance(value, type(defaults[name])) and value == defaults[name]
        return name not in PLACEMENT and not default

    return {"x" if name in ("self", "input") else name: v for name, v in bound.items() if given(name, v)}


def _fold(target: Callable, args: Sequence, kwargs: dict, store: Store, prefix: str) -> Any:
    """torch's own answer where nothing depends on an input; named after the first tensor it came from."""
    sources = _leaves((args, kwargs), Constant)
    origin = sources[0] if sources else Constant(torch.empty(0), prefix + "const", False, store)
    with torch.no_grad():
        found = target(*_map(args, _tensor), **_map(kwargs, _tensor))
    return _map(found, lambda v: _derived(origin, v) if isinstance(v, torch.Tensor) else v)


def _derived(origin: Constant, tensor: torch.Tensor) -> Constant:
    """The origin itself, where the operator changed nothing."""
    source = origin.tensor
    same = (tensor.shape, tensor.dtype) == (source.shape, source.dtype) and torch.equal(tensor, source)
    return origin if same else origin.derived(tensor)


def _tensor(value: Any) -> Any:
    return value.tensor if isinstance(value, Constant) else value


def _map(value: Any, f: Callable) -> Any:
    if isinstance(value, dict):
        return {k: _map(v, f) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_map(v, f) for v in value]
    return f(value)


def _leaves(value: Any, kind: Any) -> list:
    found: list = []
    _map(value, lambda v: found.append(v) if isinstance(v, kind) else None)
    return found


def _where(node: torch.fx.Node) -> str:
    """Path and class of the module that the operator was called in."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return "the module's forward"
    path, kind = stack[-1]
    path = path.removeprefix("model").removeprefix(".")
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__name__}"
    return f"module {path} ({kind})" if path else "the entry itself, outside any submodule"

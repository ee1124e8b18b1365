"""Capture against torch: each entry in real arithmetic to float64's rounding, in canonical float32 to float32's."""

from __future__ import annotations

import math

import fixtures_models as fixtures
import numpy as np
import pytest
import torch
from fixtures_models import exact_constants  # noqa: F401
from torch import nn
from torch.nn import functional as F

from edgewm.capture import capture
from edgewm.errors import EdgewmError
from edgewm.interp import run
from edgewm.models import example, own

X = torch.linspace(-2, 2, 24).reshape(2, 3, 4) + 0.01


def both(module: nn.Module, inputs: tuple, call=None, graph_of: nn.Module | None = None) -> None:
    """Compare real and canonical arithmetic with torch in float64, within rounding along the longest path."""
    call = call or (lambda m, *xs: m(*xs))
    names = [f"x{i}" for i in range(len(inputs))]
    arrays = {n: x.numpy() for n, x in zip(names, inputs, strict=True)}
    wide = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    for dtype in (np.float32, np.float64):
        module = module.float() if dtype == np.float32 else module.double()
        graph, weights = capture(module, inputs if dtype == np.float32 else wide, names, ["y"], call=call)
        with torch.no_grad():
            wanted = call(module.double(), *wide)
        found = run(graph, arrays, weights, real=dtype == np.float64)["y"]
        assert found.shape == tuple(wanted.shape)
        error, bound = fixtures.relative_error(found, wanted), fixtures.rounding(graph, dtype)
        assert error <= bound, f"{dtype.__name__}: {error} > {bound}"
        if dtype == np.float64:
            assert error < 1e-11
    module.float()


class Function(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, *xs):
        return self.f(*xs)


FUNCTIONS = {
    "arithmetic": lambda x: (2 - x) * x / 3 + x.square() - x.pow(3) + torch.rsqrt(x.abs()) + (x * x + 1) ** -0.5,
    "activations": lambda x: F.mish(x) + F.silu(x) + F.softplus(x) + F.elu(x) + F.leaky_relu(x) * x.sigmoid(),
    "gelu": lambda x: F.gelu(x) + F.gelu(x, approximate="tanh"),
    "angles": lambda x: torch.sin(3 * x) + torch.cos(x),
    "reductions": lambda x: x.mean((0, 2)) + x.sum(0).amax(-1) + x.var(-1)[0] + x.std(-1, False)[1] + x.amin((0, 2)),
    "norms": lambda x: torch.linalg.vector_norm(x, dim=-1) + x.norm(p=1, dim=-1) + F.normalize(x, dim=1).amax(-1),
    "softmax": lambda x: x.softmax(1) + x.log_softmax(-1) + x.logsumexp(0),
    "views": lambda x: torch.cat([x.mT.flatten(1), x.movedim(1, 0).reshape(3, -1)[:2, :4]], 1).unflatten(1, (4, -1)),
    "pieces": lambda x: torch.stack([*x.chunk(2, -1), x.split([3, 1], -1)[0][..., 1:]], 1) * x.unbind()[0][0, 0],
    "strides": lambda x: x[..., 0::2] * x[..., 1::2] + x[:, :1, ::3],
    "indices": lambda x: x[:, torch.tensor([2, 0, 1])] + x.index_select(2, torch.tensor([3, 3, 1, 0])) + x.flip(1),
    "masks": lambda x: torch.where(x > 0, x, 0.5 * x).masked_fill(x.abs() < 0.3, -7.0).clamp(-5, 1.5),
    "in place": lambda x: x.clone().mul_(2).add_(1).relu_(),
    "lerp": lambda x: torch.lerp(x, x * x, 0.25) + torch.addcmul(x, x, x, value=0.5),
    "einsum": lambda x: torch.einsum("bij,bkj->bik", x, x) + torch.baddbmm(x[..., :3], x, x.mT, alpha=0.5),
    "constants": lambda x: x + torch.arange(4, dtype=x.dtype) * torch.eye(4, dtype=x.dtype)[1] + torch.zeros_like(x),
    "rolled": lambda x: x.repeat(1, 2, 1).repeat_interleave(2, -1)[:, :3, 2:6] + x.expand(2, 3, 4),
    "pixels": lambda x: F.pixel_shuffle(F.pixel_unshuffle(x.reshape(1, 1, 4, 6), 2).square(), 2),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.usefixtures("exact_constants")
def test_functions_match_torch(name: str) -> None:
    both(Function(FUNCTIONS[name]), (X,))


MODULES = {
    "linear": (lambda: nn.Linear(4, 5), X),
    "linear of a vector": (lambda: nn.Linear(4, 5), X[0, 0]),
    "layer norm over two axes": (lambda: nn.LayerNorm((3, 4)), X),
    "rms norm": (lambda: nn.RMSNorm(4, eps=1e-5), X),
    "group norm": (lambda: nn.GroupNorm(3, 3), X),
    "batch norm": (lambda: nn.BatchNorm1d(4), X[0]),
    "batch norm over time": (lambda: nn.BatchNorm1d(3), X),
    "1x1 convolution": (lambda: nn.Conv1d(3, 5, 1), X),
    "patches": (lambda: nn.Conv2d(3, 5, 2, 2), torch.linspace(-1, 1, 90).reshape(1, 3, 5, 6)),
    "attention": (lambda: nn.MultiheadAttention(4, 2, batch_first=True), X),
    "gru cell": (lambda: nn.GRUCell(4, 4), X[0]),
    "dropout": (lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 4), nn.ReLU(inplace=True)), X),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.usefixtures("exact_constants")
def test_modules_match_torch(name: str) -> None:
    make_module, x = MODULES[name]
    call = {
        "attention": lambda m, x: m(x, x, x, need_weights=False)[0], "gru cell": lambda m, x: m(x, x * 0.5),
    }.get(name)  # fmt: skip
    both(fixtures.seeded(make_module()), (x,), call)


@pytest.mark.parametrize("name", ["tdmpc2", "rssm", "frame_causal"])
@pytest.mark.usefixtures("exact_constants")
def test_other_families_match_torch(name: str) -> None:
    model = own.from_module(getattr(fixtures, name)(), name)
    torch.manual_seed(0)
    window, latent, action = model.window, model.latent_dim, model.action_dim
    both(model.torch, (torch.randn(3, window, latent), torch.randn(3, window, action)), model.predict)
    both(model.torch, (torch.randn(1, latent), torch.randn(1, latent), torch.randn(3, 2, action)), model.score)
    both(model.torch, tuple(torch.randn(p.shape) for p in model.ports_of("observation")), model.encode)
    for head in model.heads.values():
        both(model.torch, (torch.randn(1, latent),), head)


@pytest.mark.parametrize("name", ["small_torch_world", "small_lewm"])
@pytest.mark.usefixtures("exact_constants")
def test_lewm_matches_torch(name: str) -> None:
    model = getattr(fixtures, name)()
    torch.manual_seed(0)
    latent, action = model.latent_dim, model.action_dim
    both(model.torch, (torch.randn(3, model.window, latent), torch.randn(3, model.window, action)), model.predict)
    both(model.torch, (torch.randn(1, latent), torch.randn(1, latent), torch.randn(3, 4, action)), model.score)
    pixels = torch.randint(0, 256, example(model.ports[0]).shape, dtype=torch.uint8)
    both(model.torch, (pixels,), model.encode)


def test_a_linear_layer_is_one_product_with_its_weight_transposed() -> None:
    layer = nn.Linear(4, 5)
    graph, weights = capture(layer, (X,), ["x"], ["y"], prefix="head.")
    product = graph.outputs["y"].sources[0]
    assert product.op == "matmul" and product.sources[1].op == "weight" and product.sources[1]["name"] == "head.weight"
    assert np.array_equal(weights["head.weight"], layer.weight.detach().numpy().T)
    assert list(weights) == ["head.weight", "head.bias"] and weights["head.bias"].dtype == np.float32


def test_entries_share_weights_and_modes_stay() -> None:
    layer = nn.Linear(4, 4).train()
    _, first = capture(layer, (X,), ["x"], ["y"])
    _, second = capture(layer, (X[0],), ["x"], ["y"], weights=first)
    assert second is first and len(first) == 2 and layer.training


def test_one_name_never_holds_two_arrays() -> None:
    tied = nn.Linear(4, 4, bias=False)
    graph, weights = capture(tied, (X,), ["x"], ["y"], call=lambda m, x: m(x) @ m.weight)
    assert len(weights) == 2 and len(graph.weights()) == 2
    with torch.no_grad():
        wanted = (tied(X) @ tied.weight).numpy()
    assert fixtures.relative_error(run(graph, {"x": X.numpy()}, weights)["y"], wanted) <= fixtures.rounding(
        graph, np.float32
    )


def test_capture_is_the_same_twice() -> None:
    module = fixtures.frame_causal()
    inputs = (torch.zeros(2, 2, 32), torch.zeros(2, 2, 2))
    (graph, weights), (again, others) = (
        capture(module, inputs, ["z", "actions"], ["y"], call=lambda m, *xs: m.predict(*xs)) for _ in range(2)
    )
    assert graph == again and list(weights) == list(others)


def refusal(module: nn.Module, *inputs: torch.Tensor, call=None) -> str:
    with pytest.raises(EdgewmError) as caught:
        capture(module, inputs or (X,), [f"x{i}" for i in range(max(1, len(inputs)))], ["y"], call=call)
    return str(caught.value)


class Nested(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Identity(), inner])

    def forward(self, x):
        return self.blocks[1](x)


def test_an_unknown_operator_is_refused_by_name_and_place() -> None:
    message = refusal(Nested(Function(lambda x: torch.cumsum(x, -1))))
    assert "operator aten.cumsum.default is not in the table of ops" in message
    assert "module blocks.1 (" in message and "edgewm/aten.py" in message


def test_an_uncovered_form_is_refused() -> None:
    assert "not a patch projection" in refusal(nn.Conv1d(3, 3, 3, padding=1))
    assert "rounding_mode='floor'" in refusal(Function(lambda x: torch.div(x, 2, rounding_mode="floor")))
    assert "an index that is computed at run time" in refusal(
        Function(lambda x, i: x.index_select(0, i)), X, torch.tensor([0, 1])
    )


def test_control_flow_on_values_is_refused() -> None:
    message = refusal(Function(lambda x: x if x.sum() > 0 else -x))
    assert "torch cannot export this entry" in message and "control flow that depends on values" in message


@pytest.mark.parametrize(("value", "word"), [(math.nan, "NaN"), (math.inf, "Inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value: float, word: str) -> None:
    layer = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with torch.no_grad():
        layer[0].weight[1, 2] = value
    assert f"weight 0.weight holds {word}" in refusal(layer, X[0])
    layer[0].reset_parameters()
    layer[1].running_var[0] = value
    assert f"weight 1.running_var holds {word}" in refusal(layer, X[0])

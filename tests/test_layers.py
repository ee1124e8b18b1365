"""Which layer costs what fidelity: one product at a time in the form of the recipe, computed by its own reference."""

from __future__ import annotations

import fixtures_models as fixtures
import numpy as np
import pytest

pytest.importorskip("torch_world")

import torch
from test_planted_faults import contexts, lewm
from test_validate import quiet

from edgewm import expr as e
from edgewm.interp import run
from edgewm.judge import layers
from edgewm.judge_page import _layers as card
from edgewm.passes.quantize_products import quantize_products
from edgewm.program import Graph, Program

MLP, OTHER = "predictor.blocks.1.mlp.0.weight", "predictor.blocks.0.mlp.0.weight"


def linear() -> torch.nn.Linear:
    made = torch.nn.Linear(72, 5)
    return fixtures.seeded(made)


@pytest.mark.parametrize("kind", ["w8a8", "bf16"])
def test_a_held_layer_computes_what_the_quantized_program_does(kind: str) -> None:
    layer, x = linear(), np.random.default_rng(0).standard_normal((2, 3, 72)).astype(np.float32)
    w = layer.weight.detach().numpy().T
    product = Graph({"y": e.matmul(e.input("x", (6, 72)), e.weight("w", w.shape))})
    program = quantize_products(Program({"score": product}, {"w": np.ascontiguousarray(w)}, recipe={"w": kind}))
    wanted = run(program.entries["score"], {"x": x.reshape(6, 72)}, program.weights)["y"]
    with torch.inference_mode():
        layer.register_forward_hook(layers.held(layer, kind))
        found = layer(torch.from_numpy(x)).numpy() - layer.bias.detach().numpy()
    assert found.shape == (2, 3, 5)
    allowed = 0.0 if kind == "w8a8" else 72 * 2.0**-24 * (np.abs(x).reshape(6, 72) @ np.abs(w)).max()
    bias = 2 * 2.0**-24 * (np.abs(wanted).max() + np.abs(layer.bias.detach().numpy()).max())  # added, taken away
    assert np.abs(found.reshape(6, 5) - wanted).max() <= allowed + bias


def told(model, recipe: dict[str, str]) -> dict:
    pairs = [({"pixels": o["pixels"]}, {"pixels": g["pixels"]}) for o, g in contexts(2, 0)]
    return layers.run(model, model.planner, recipe, pairs, 0, quiet)


def test_the_layer_that_eight_bits_hurt_comes_first() -> None:
    model = lewm()
    weight = dict(model.torch.named_parameters())[OTHER]
    with torch.no_grad():
        weight[:, 3] = weight[:, 3] * 300  # an outlier in each output's scale
    found = told(model, {MLP: "w8a8", OTHER: "w8a8"})
    assert [row["name"] for row in found["rows"]] == [OTHER, MLP] and found["contexts"] == 2
    dear, cheap = (row["cost_error"] for row in found["rows"])
    assert dear > 3 * cheap > 0 and found["rows"][0]["spearman_min"] < 1
    assert MLP.removesuffix(".weight") in card(found) and "w8a8" in card(found)


def test_more_bits_cost_less_and_what_is_no_layer_is_named() -> None:
    recipe = {MLP: "bf16", OTHER: "w8a8", "constant/7": "w8a8", "pos_embed": "bf16", "+hidden": "bf16"}
    found = told(lewm(), recipe)
    error = {row["form"]: row["cost_error"] for row in found["rows"]}
    assert error["bf16"] < error["w8a8"] and found["not_told"] == ["constant/7", "pos_embed"]
    assert "2 products are no whole linear layers" in card(found) and card({**found, "rows": []}) == "" == card(None)


def test_a_layer_whose_error_is_not_finite_comes_first(monkeypatch) -> None:
    model, real = lewm(), layers.with_one

    def with_one(module, name: str, kind: str):
        made = real(module, name, kind)
        if name == OTHER:
            made.get_submodule(OTHER.removesuffix(".weight")).register_forward_hook(lambda *given: given[-1] * np.nan)
        return made

    monkeypatch.setattr(layers, "with_one", with_one)
    rows = told(model, {MLP: "w8a8", OTHER: "w8a8"})["rows"]
    assert [(row["name"], row["cost_error"] is None) for row in rows] == [(OTHER, True), (MLP, False)]


def test_the_model_is_left_as_it_was() -> None:
    model = lewm()
    before = {k: v.clone() for k, v in model.torch.state_dict().items()}
    told(model, {MLP: "w8a8"})
    assert all(torch.equal(before[k], v) for k, v in model.torch.state_dict().items())
    assert not any(m._forward_hooks for m in model.torch.modules())


def test_constant_steps_are_those_of_what_a_layer_is_given() -> None:
    """Twice the numbers, twice the steps: no range of another call is used."""
    layer = fixtures.seeded(torch.nn.Linear(64, 3, bias=False))
    hook = layers.held(layer, "w8a8_static")
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((9, 64)).astype(np.float32))
    once, twice = (hook(layer, (given,), layer(given)) for given in (x, 2 * x))
    w, step = layer.weight.detach().abs(), (x.max() - x.min()) / 254
    np.testing.assert_array_equal(twice, 2 * once)
    of_weights = x.abs().sum(1).max() * w.max() / 254
    assert (once - layer(x)).abs().max() < step / 2 * (w + w.max() / 254).sum(1).max() + of_weights

"""A start from the teacher, where it is a LeWM: its encoder whole, and of its predictor what planning misses most.

A student of any width takes the encoder: its last linear layer gives latents in the student's space at once, so what
the student sees is what its teacher sees, to rounding. A predictor as wide as the teacher's begins with those layers,
heads and hidden channels that planning loses most without; a narrower one begins with "nothing changes".
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..judge.sides import elites_of, upstream
from ..models import Model, torch_world
from ..reference.model import JumpingLeWM
from . import condition
from .shapes import Shape, as_model
from .space import Space
from .teacher import Teacher

Array = np.ndarray
Moments = tuple[Tensor, Tensor]  # mean (K,) and covariance (K, K) of the inputs of a product, float64
CONTEXTS = 4  # to measure what a layer is worth
EVERY = 3  # iterations of a search
RIDGE = 1e-6  # of the mean square of what is regressed on
SMALL = 0.02  # what is left of a fresh weight, so that channels still differ


def take_encoder(module: nn.Module, teacher: Teacher, space: Space) -> bool:
    """Give `module` the teacher's encoder, in its own latent space; False, with nothing done, where it has no use for
    it: another family, sizes or preprocessing."""
    if teacher.model.family != torch_world.FAMILY:
        return False
    source, camera = teacher.model.torch, teacher.model.ports_of("observation")[0]
    student = as_model(module, teacher.model, teacher.planner)
    kept = ("encoder.", "projector.")
    own = {k: v for k, v in source.state_dict().items() if k.startswith(kept)}
    last = f"projector.{len(source.projector) - 1}"
    axes, mean = (torch.from_numpy(x).to(teacher.model.device) for x in (space.axes, space.mean))
    own[f"{last}.weight"] = space.scale * (axes.T @ own[f"{last}.weight"])
    own[f"{last}.bias"] = space.scale * ((own[f"{last}.bias"] - mean) @ axes)
    wanted = {k: v.shape for k, v in module.state_dict().items() if k.startswith(kept)}
    is_alike = student.ports[0].preprocessing == camera.preprocessing
    if not is_alike or wanted != {k: v.shape for k, v in own.items()}:
        return False
    module.load_state_dict(own, strict=False)
    return True


def begins_as(shape: Shape, model: Model) -> bool:
    """Whether a student of this shape begins with what its teacher's predictor does: one that jumps takes its layers,
    and has to learn to jump."""
    is_stepping = model.family == torch_world.FAMILY and not isinstance(model.torch, JumpingLeWM) and shape.jump == 1
    return is_stepping and shape.width == model.latent_dim


def take_predictor(module: nn.Module, teacher: Teacher, space: Space, held: Mapping[str, Array]) -> list[float]:
    """Give `module` what is worth most of the teacher's predictor, where both see the same latents: the share of elites
    lost without each of its layers, empty where nothing was done."""
    source = teacher.model.torch
    is_same = np.array_equal(space.axes, np.eye(*space.axes.shape)) and space.scale == 1.0
    if teacher.model.family != torch_world.FAMILY or isinstance(source, JumpingLeWM) or not is_same:
        return []
    kept, worth = layers(teacher, held, len(module.predictor.blocks))
    with torch.no_grad():
        jump = widen(module.action_encoder, source.action_encoder)
        module.predictor.norm.load_state_dict(source.predictor.norm.state_dict())
        module.pos_embed.copy_(source.pos_embed[:, : 1 if jump > 1 else module.history])
        read = inputs_of(teacher, held, kept, 1 if jump > 1 else module.history)
        for i, (target, index) in enumerate(zip(module.predictor.blocks, kept, strict=True)):
            narrow(target, source.predictor.blocks[index], read.get(f"{i}.attn"), read.get(f"{i}.mlp"))
        if len(module.action_encoder) > len(source.action_encoder):
            condition.take(module, teacher.model, kept)
        _narrow_mlp(module.pred_proj, source.pred_proj)
    return worth


def last_products(block: nn.Module) -> dict[str, nn.Module]:
    return {"attn": block.attn.proj, "mlp": block.mlp[-1]}


def inputs_of(
    teacher: Teacher, held: Mapping[str, Array], kept: Sequence[int], window: int,
    products: Callable[[nn.Module], Mapping[str, nn.Module]] = last_products,
) -> dict[str, Moments]:  # fmt: skip
    """What the `products` of each of the kept layers read while candidates are imagined from `window` latents, by
    `i.name` for the `i`-th."""
    cut = _with_layers(teacher.model.torch, kept)
    cut.history = window
    sums: dict[str, tuple[int, Tensor, Tensor]] = {}

    def reads(key: str, layer: nn.Module) -> None:
        def add(_: nn.Module, given: tuple[Tensor]) -> None:
            x = given[0].flatten(0, -2).double()
            count, total, square = sums.get(key, (0, 0.0, 0.0))
            sums[key] = count + len(x), total + x.sum(0), square + x.T @ x

        layer.register_forward_pre_hook(add)

    for i, block in enumerate(cut.predictor.blocks):
        for name, layer in products(block).items():
            reads(f"{i}.{name}", layer)
    for i in range(min(CONTEXTS, len(held["costs"]))):
        tried = np.concatenate(held["candidates"][i][::EVERY])[::EVERY]
        candidates, z = (torch.from_numpy(np.array(x)).to(teacher.model.device) for x in (tried, held["latent"][i]))
        cut.rollout(z.expand(len(candidates), 1, -1), candidates)
    return {key: (x / n, xx / n - torch.outer(x / n, x / n)) for key, (n, x, xx) in sums.items()}


def _with_layers(module: nn.Module, kept: Sequence[int]) -> nn.Module:
    cut = copy.deepcopy(module)
    cut.predictor.blocks = nn.ModuleList(cut.predictor.blocks[i] for i in kept)
    return cut


def stand_still(module: nn.Module, latents: Array) -> None:
    """Let a fresh predictor begin with "nothing changes", as far as that can be read from what its last norm leaves of
    a latent: a ridge regression on latents (N, D) of the student's space.

    Its blocks are gated to nothing at first, and GELU(x) - GELU(-x) = x lets a linear map through its last layers.
    Does nothing where those are narrower than twice a latent.
    """
    width, first, last = latents.shape[1], module.pred_proj[0], module.pred_proj[-1]
    if first.out_features < 2 * width:
        return
    z = torch.from_numpy(latents).to(first.weight.device).double()
    seen = nn.functional.layer_norm(z, (width,), eps=module.predictor.norm.eps)
    x, y = seen - seen.mean(0), z - z.mean(0)
    ridge = RIDGE * x.square().mean() * len(x) * torch.eye(width, dtype=x.dtype, device=x.device)
    way = torch.linalg.solve(x.T @ x + ridge, x.T @ y).T.float()
    with torch.no_grad():
        module.pos_embed.mul_(SMALL)
        for layer in (first, last):
            layer.weight.mul_(SMALL)
            layer.bias.zero_()
        eye = torch.eye(width, device=z.device)
        first.weight[: 2 * width] = torch.cat([eye, -eye])
        last.weight[:, : 2 * width] = torch.cat([way, -way], 1)
        last.bias.copy_(z.mean(0).float() - way @ seen.mean(0).float())


def layers(teacher: Teacher, held: Mapping[str, Array], count: int) -> tuple[list[int], list[float]]:
    """The `count` layers of the predictor to keep, in order, and the share of elites lost without each alone."""
    total = len(teacher.model.torch.predictor.blocks)
    worth = [lost_without(teacher, held, [i]) for i in range(total)]
    left = list(range(total))
    while len(left) > count:  # one by one: what a layer is worth depends on those that are there
        gone = [i for i in range(total) if i not in left]
        left.remove(min(left, key=lambda i: lost_without(teacher, held, [*gone, i])))
    return left, worth


def lost_without(teacher: Teacher, held: Mapping[str, Array], gone: Sequence[int]) -> float:
    """Mean share of elites that the teacher's planner would not choose without these layers of its predictor."""
    planner, model = teacher.planner, teacher.model
    cut = _with_layers(model.torch, [i for i in range(len(model.torch.predictor.blocks)) if i not in gone])
    side = upstream(as_model(cut, model, planner), planner)
    lost = []
    for i in range(min(CONTEXTS, len(held["costs"]))):
        z, goal = np.array(held["latent"][i]), np.array(held["goal_latent"][i])
        for candidates, costs in zip(held["candidates"][i][::EVERY], held["costs"][i][::EVERY], strict=True):
            own = side.score(z, goal, np.array(candidates))
            shared = np.intersect1d(elites_of(own, planner.elites), elites_of(costs, planner.elites))
            lost.append(1 - len(shared) / planner.elites)
    return float(np.mean(lost))


def widen(target: nn.Sequential, source: nn.Sequential) -> int:
    """An encoder of as many actions as it returns, from one of a single action: of all of them it says what that says
    of their mean."""
    count = target[0].in_features // source[0].in_features
    first = source[1][0].weight
    target[1].load_state_dict({**source[1].state_dict(), "0.weight": first.repeat(1, count) / count})
    target[0].weight.copy_(torch.block_diag(*[source[0].weight] * count))
    target[0].bias.copy_(source[0].bias.repeat(count))
    for i, layer in enumerate(source[2:], start=2):  # what makes few numbers of it, where the source does
        target[i].load_state_dict(layer.state_dict())
    return count


def narrow(
    target: nn.Module, source: nn.Module, attended: Moments | None = None, hidden: Moments | None = None
) -> None:
    """A block from a wider one: the heads whose values reach furthest, the hidden channels that weigh most. Where it is
    known what its last products read, those that stay make up for the others as far as they tell of them."""
    if len(target.modulation) == len(source.modulation):
        target.modulation.load_state_dict(source.modulation.state_dict())
    dim = source.attn.head_dim
    if target.attn.head_dim != dim:
        return
    out = source.attn.proj.weight.unflatten(1, (source.attn.num_heads, dim))
    values = source.attn.qkv.weight.unflatten(0, (3, source.attn.num_heads, dim))
    reach = torch.einsum("ohd,hdi->hoi", out, values[2]).flatten(1).norm(dim=1)
    heads = reach.argsort(descending=True)[: target.attn.num_heads].sort().values
    bias = source.attn.qkv.bias.unflatten(0, (3, source.attn.num_heads, dim))
    target.attn.qkv.weight.copy_(values[:, heads].flatten(0, 2))
    target.attn.qkv.bias.copy_(bias[:, heads].flatten())
    taken = (heads[:, None] * dim + torch.arange(dim, device=heads.device)).flatten()
    _take_inputs(target.attn.proj, source.attn.proj, taken, attended)
    _narrow_mlp(target.mlp, source.mlp, hidden)


def _narrow_mlp(target: nn.Sequential, source: nn.Sequential, hidden: Moments | None = None) -> None:
    """Linear, (norm,) activation, linear: the hidden channels of the largest weights in and out."""
    first, last = source[0], source[-1]
    weigh = first.weight.norm(dim=1) * last.weight.norm(dim=0)
    if hidden is not None:
        weigh = hidden[1].diagonal().clamp_min(0).sqrt() * last.weight.norm(dim=0)
    taken = weigh.argsort(descending=True)[: target[0].out_features].sort().values
    target[0].weight.copy_(first.weight[taken])
    target[0].bias.copy_(first.bias[taken])
    for new, old in zip(list(target)[1:-1], list(source)[1:-1], strict=True):
        if isinstance(old, nn.BatchNorm1d):
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(new, name).copy_(getattr(old, name)[taken])
    _take_inputs(target[-1], last, taken, hidden)


def _take_inputs(target: nn.Linear, source: nn.Linear, taken: Tensor, read: Moments | None) -> None:
    """The product of these inputs alone; what it `read` says how the others follow from them (a ridge regression)."""
    weight, bias = source.weight[:, taken], source.bias
    if read is not None and len(taken) < source.in_features:
        (middle, power), wide = read, source.weight.double()
        ridge = RIDGE * power.diagonal().mean() * torch.eye(len(taken), dtype=power.dtype, device=power.device)
        weight = wide @ torch.linalg.solve(power[taken][:, taken] + ridge, power[taken]).T
        bias = bias + wide @ middle - weight @ middle[taken]
    target.weight.copy_(weight)
    target.bias.copy_(bias)

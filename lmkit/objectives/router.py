"""What the routers of mixtures of experts add to a loss, and the figures that say how they do."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from lmkit.config.base import ConfigError
from lmkit.config.sections.model import ModelConfig
from lmkit.nn.auxiliary import Auxiliary
from lmkit.objectives.sums import Sums
from lmkit.parallel.rules import over_data


def add_router(model: ModelConfig, sums: Sums, auxiliary: Sequence[Auxiliary]) -> Sums:
    """The sums with the losses of `balance_loss` and `router_z_loss` and the figures of all layers' routers.

    Each is weighted, so that a mean over `weight` gains the loss of the whole batch; with accumulation it is that of
    each micro-batch. Raises ConfigError where there are losses to add and no layer hands out what they are made of.
    """
    part = next((part for part in model.towers().values() if part.num_experts), None)
    if part is None:
        return sums
    losses = {"balance": part.balance_loss, "z": part.router_z_loss}
    if not auxiliary:
        if not any(losses.values()):
            return sums
        raise ConfigError(
            f"model.balance_loss={part.balance_loss} and model.router_z_loss={part.router_z_loss}: no layer hands out "
            f"its router's sums; model.block={part.block} has to call lmkit.nn.moe with its inputs, or set both to 0"
        )
    figures = router_figures(auxiliary)
    added = sum(weight * figures[name] for name, weight in losses.items())
    figures = {name: sums.weight * jax.lax.stop_gradient(value) for name, value in figures.items()}
    return sums._replace(loss=sums.loss + sums.weight * added, router=figures)


def router_figures(auxiliary: Sequence[Auxiliary]) -> dict[str, jax.Array]:
    """Figures of all layers, from the sums [L, ...] that stacks handed out.

    balance: E sum over experts of f P, with f the share of all choices that went to an expert and P its mean
        probability; 1 where the load is even (Fedus et al. 2021, equations 4 to 6, whose one choice a token may be k:
        Dai et al. 2024, equations 12 to 14). Its gradient comes through P alone.
    z: the mean over tokens of log(Z)^2 (Zoph et al. 2022, equation 5).
    dropped: the share of choices that found no room.
    max_load: the most chosen expert's share over an even one, in the worst layer.

    The first three are means over layers, so that their weights mean the same at any depth.
    """
    layers = [_of_layers(**sums) for sums in over_data(list(auxiliary))]
    every = {name: jnp.concatenate([one[name] for one in layers]) for name in layers[0]}
    return {name: jnp.max(x) if name == "max_load" else jnp.mean(x) for name, x in every.items()}


def _of_layers(chosen, probability, z, dropped, tokens) -> dict[str, jax.Array]:
    choices_L = jnp.sum(chosen, axis=1)
    share_LE = chosen / choices_L[:, None]
    experts = chosen.shape[1]
    return {
        "balance": experts * jnp.sum(share_LE * probability, axis=1) / tokens,
        "z": z / tokens,
        "dropped": dropped / choices_L,
        "max_load": experts * jnp.max(share_LE, axis=1),
    }

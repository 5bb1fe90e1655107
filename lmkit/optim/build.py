"""The optax chain of a configuration: clip, update rule by kind of parameter, decay, learning rate."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from lmkit.config.base import ConfigError
from lmkit.config.patterns import matching
from lmkit.config.sections.optim import OptimConfig, Optimizer, ParamKind
from lmkit.nn.param import ParamSpec
from lmkit.nn.tree import flat, nested
from lmkit.optim.muon import scale_by_muon
from lmkit.optim.schedule import make_schedule


class Optim(NamedTuple):
    """An optimiser.

    `evaluation_params(opt_state, params)` gives the parameters to evaluate with: they differ from the trained
    ones for schedule-free optimisers (Defazio et al. 2024, section 2).
    """

    transform: optax.GradientTransformation
    learning_rate: optax.Schedule
    evaluation_params: Callable[[Any, Any], Any]


def build_optim(config: OptimConfig, steps: int, specs: Any) -> Optim:
    """The optimiser for parameters described by `specs` (a tree of ParamSpec). Raises ConfigError for another tree."""
    wrong = [type(leaf).__name__ for leaf in jax.tree.leaves(specs) or [None] if not isinstance(leaf, ParamSpec)]
    if wrong:
        raise ConfigError(
            f"specs hold {wrong[0].replace('NoneType', 'nothing')}, not ParamSpec: give what lmkit.nn.param."
            f"param_specs makes of nnx.state(model)"
        )
    rate = make_schedule(config, steps, config.learning_rate)
    decays = jax.tree.map(lambda spec: spec.kind in config.decay, specs)
    rules = {
        Optimizer.adamw: lambda: _decayed(_adam(config), config, decays, rate),
        Optimizer.lion: lambda: _decayed(optax.scale_by_lion(config.beta1, config.beta2), config, decays, rate),
        Optimizer.sgd: lambda: _decayed(optax.trace(config.momentum, nesterov=True), config, decays, rate),
        Optimizer.adafactor: lambda: optax.adafactor(
            rate, multiply_by_parameter_scale=False, clipping_threshold=1.0,
            weight_decay_rate=None, decay_rate=0.8, momentum=None,
        ),
        Optimizer.schedule_free_adamw: lambda: _schedule_free(config, decays, rate),
        Optimizer.muon: lambda: _muon(config, steps, specs, decays, rate),
    }  # fmt: skip
    rule = rules[config.kind]()
    chain = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    if config.kind is Optimizer.adafactor:
        rule = optax.chain(rule, _decay_only(config, decays, rate))
    evaluation_params = _keep
    if config.kind is Optimizer.schedule_free_adamw:
        evaluation_params = _schedule_free_params
    last = [_by_part(config, specs)] if config.rates else []
    return Optim(optax.chain(*chain, rule, *last), rate, evaluation_params)


def _adam(config: OptimConfig) -> optax.GradientTransformation:
    return optax.scale_by_adam(config.beta1, config.beta2, config.eps)


def _decayed(rule, config: OptimConfig, decays: Any, rate: optax.Schedule) -> optax.GradientTransformation:
    """rule, plus decoupled decay (Loshchilov and Hutter 2019, algorithm 2), times the learning rate."""
    decay = [optax.add_decayed_weights(config.weight_decay, decays)] if config.weight_decay else []
    return optax.chain(rule, *decay, optax.scale_by_learning_rate(rate))


def _schedule_free(config: OptimConfig, decays: Any, rate: optax.Schedule) -> optax.GradientTransformation:
    """AdamW without momentum, whose iterates are averaged (Defazio et al. 2024, algorithm 1, with its warm-up)."""
    adam = optax.scale_by_rms(config.beta2, config.eps, eps_in_sqrt=False, bias_correction=True)
    rule = _decayed(adam, config, decays, rate)
    # it counts steps from 1, where the rule inside counts from 0
    return contrib.schedule_free(rule, learning_rate=lambda count: rate(count - 1), b1=config.beta1)


def _muon(
    config: OptimConfig, steps: int, specs: Any, decays: Any, rate: optax.Schedule
) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for matrices, Adam for the rest, each with its own peak rate."""
    labels = jax.tree.map(lambda spec: "muon" if spec.kind is ParamKind.matrix else "adam", specs)
    only = {
        label: jax.tree.map(
            lambda decay, own, label=label: decay if own == label else optax.MaskedNode(), decays, labels
        )
        for label in ("muon", "adam")
    }
    widths = jax.tree.map(_width_factor, specs)
    rule = optax.chain(
        scale_by_muon(config.momentum, specs),
        optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, widths, updates)),
    )
    adam_rate = make_schedule(config, steps, config.adam_learning_rate)
    return optax.partition(
        {
            "muon": _decayed(rule, config, only["muon"], rate),
            "adam": _decayed(_adam(config), config, only["adam"], adam_rate),
        },
        labels,
    )


def _width_factor(spec: ParamSpec) -> Any:
    """sqrt(max(1, outputs / inputs)): the same learning rate suits every width (Jordan et al. 2024)."""
    if spec.kind is not ParamKind.matrix:
        return optax.MaskedNode()
    split = spec.stacked + spec.num_in
    return max(1.0, math.prod(spec.shape[split:]) / math.prod(spec.shape[spec.stacked : split])) ** 0.5


def _decay_only(config: OptimConfig, decays: Any, rate: optax.Schedule) -> optax.GradientTransformation:
    """Decoupled decay for a rule that has applied its learning rate already."""

    def update(updates, state, params=None):
        factor = rate(state.count) * config.weight_decay
        updates = jax.tree.map(lambda u, p, decay: u - factor * p if decay else u, updates, params, decays)
        return updates, optax.ScaleByScheduleState(count=optax.safe_increment(state.count))

    return optax.GradientTransformation(
        lambda params: optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32)), update
    )


def _by_part(config: OptimConfig, specs: Any) -> optax.GradientTransformation:
    """Each update, its decay too, times the factor of its parameter's path."""
    leaves = flat(specs)
    found = matching("optim.rates", config.rates, leaves)
    factors = nested({path: config.rates[found[path]] if path in found else 1.0 for path in leaves})
    return optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, factors))


def _keep(opt_state: Any, params: Any) -> Any:
    return params


def _schedule_free_params(opt_state: Any, params: Any) -> Any:
    return contrib.schedule_free_eval_params(opt_state[-1], params)

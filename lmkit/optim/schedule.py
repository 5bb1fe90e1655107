"""The learning rate as a function of the step."""

import jax.numpy as jnp
import optax

from lmkit.config.base import ConfigError
from lmkit.config.sections.optim import OptimConfig, Schedule


def make_schedule(config: OptimConfig, steps: int, peak: float) -> optax.Schedule:
    """Linear warm-up from 0 to `peak`, then cosine, linear, constant, or constant with a linear tail (WSD).

    Step `warmup_steps - 1` has `peak`. Where the schedule decays, the last step, `steps - 1`, has `final_ratio * peak`;
    a run of one step has `peak`. Raises ConfigError for less than one step.
    """
    if steps < 1:
        raise ConfigError(f"steps={steps}: a schedule is over at least 1 step")
    warm, last = config.warmup_steps, config.final_ratio * peak
    top = max(warm - 1, 0)  # the step that the peak is reached at
    rest = max(steps - 1 - top, 1)
    if config.schedule is Schedule.cosine:
        after = optax.cosine_decay_schedule(peak, rest, alpha=config.final_ratio)
    elif config.schedule is Schedule.linear:
        after = optax.linear_schedule(peak, last, rest)
    elif config.schedule is Schedule.wsd:
        # Zhai et al. 2022, section 3.3; Hu et al. 2024 (MiniCPM), section 4.2
        tail = min(max(round(config.decay_share * steps), 1), rest)
        after = optax.linear_schedule(peak, last, tail, transition_begin=rest - tail)
    else:
        after, last = optax.constant_schedule(peak), 0.0
    if top:
        after = optax.join_schedules([optax.linear_schedule(peak / warm, peak, top), after], [top])
    lowest = min(last, peak / max(warm, 1))  # of the warm-up, too
    return lambda step: jnp.maximum(after(step), lowest)  # a compiled program rounds the end of a line to below 0

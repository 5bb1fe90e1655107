"""The learning rate as a function of the step."""

import optax

from lmkit.config.base import ConfigError
from lmkit.config.sections.optim import OptimConfig, Schedule


def make_schedule(config: OptimConfig, steps: int, peak: float) -> optax.Schedule:
    """Linear warm-up from 0 to `peak`, then cosine, linear, constant, or constant with a linear tail (WSD).

    The last step of a decaying schedule has `final_ratio * peak`. Raises ConfigError for less than one step.
    """
    if steps < 1:
        raise ConfigError(f"steps={steps}: a schedule is over at least 1 step")
    warm, last = config.warmup_steps, config.final_ratio * peak
    rest = max(steps - warm, 1)
    if config.schedule is Schedule.cosine:
        after = optax.cosine_decay_schedule(peak, rest, alpha=config.final_ratio)
    elif config.schedule is Schedule.linear:
        after = optax.linear_schedule(peak, last, rest)
    elif config.schedule is Schedule.wsd:
        # Zhai et al. 2022, section 3.3; Hu et al. 2024 (MiniCPM), section 4.2
        tail = max(round(config.decay_share * steps), 1)
        after = optax.linear_schedule(peak, last, tail, transition_begin=max(rest - tail, 0))
    else:
        after = optax.constant_schedule(peak)
    if not warm:
        return after
    return optax.join_schedules([optax.linear_schedule(peak / warm, peak, max(warm - 1, 1)), after], [warm])

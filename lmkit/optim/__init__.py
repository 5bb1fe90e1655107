"""Optimisers: schedules, decay masks, one optax chain."""

from lmkit.optim.build import Optim, build_optim
from lmkit.optim.schedule import make_schedule

__all__ = ["Optim", "build_optim", "make_schedule"]

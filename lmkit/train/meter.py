"""Throughput of training alone."""

import time


class Meter:
    """Tokens per second of training alone: time in evaluations and saves is taken out."""

    def __init__(self, tokens_per_step: int):
        self.tokens_per_step = tokens_per_step
        self.began = self._since = time.perf_counter()
        self._step: int | None = None
        self._paused = self._waited = 0.0
        self.wait_share = 0.0  # of the time between the last two calls of `rate`
        self.trained_sec = 0.0
        self.trained_steps = 0

    def pause(self, seconds: float) -> None:
        """Leaves out time spent on something else."""
        self._paused += seconds

    def rate(self, step: int, waited_sec: float = 0.0) -> float:
        """Tokens per second since the last call. `waited_sec`: for data, since the beginning."""
        now = time.perf_counter()
        elapsed = max(now - self._since - self._paused, 1e-9)
        steps = step - self._step if self._step is not None else 0
        self._since, self._step, self._paused = now, step, 0.0
        self.trained_sec += elapsed if steps else 0.0
        self.wait_share, self._waited = min((waited_sec - self._waited) / elapsed, 1.0), waited_sec
        self.trained_steps += steps
        return steps * self.tokens_per_step / elapsed

    def mean_rate(self) -> float:
        """Tokens per second over all of this process."""
        return self.trained_steps * self.tokens_per_step / self.trained_sec if self.trained_sec else 0.0

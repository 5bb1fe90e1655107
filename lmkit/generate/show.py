"""Several texts on one terminal: the first that is not finished grows, the others wait behind it."""

import sys
import time

import jax


class Screen:
    """Writes to standard output as text comes, and a line about speed to standard error.

    Args:
        prompts: of each text.
        echo: the text continues its prompt, which is shown before it.
    """

    def __init__(self, prompts: list[str], *, echo: bool):
        self._prompts, self._echo = prompts, echo
        self._waiting, self._done = [""] * len(prompts), [False] * len(prompts)
        self._current, self._begun = 0, False
        self._start = time.perf_counter()
        self._quiet = jax.process_index() != 0

    def show(self, row: int, text: str, *, done: bool) -> None:
        """New text of a row; `done`: its last."""
        self._waiting[row] += text
        self._done[row] |= done
        while self._current < len(self._prompts):
            if not self._begun and (self._waiting[self._current] or self._done[self._current]):
                self._write(self._head(self._current))
                self._begun = True
            self._write(self._waiting[self._current])
            self._waiting[self._current] = ""
            if not self._done[self._current]:
                return
            self._write("\n")
            self._current, self._begun = self._current + 1, False

    def close(self, tokens: int) -> None:
        """Says how fast it was, loading not counted."""
        seconds = time.perf_counter() - self._start
        if not self._quiet:
            print(f"{tokens} tokens in {seconds:.1f} s, compiling included", file=sys.stderr)

    def _head(self, row: int) -> str:
        prompt = self._prompts[row]
        if len(self._prompts) == 1:
            return prompt if self._echo else ""
        first = prompt.splitlines()[0][:60] if prompt else ""
        return f"== {row + 1} of {len(self._prompts)}" + ("\n" + prompt if self._echo else f": {first}\n")

    def _write(self, text: str) -> None:
        if text and not self._quiet:
            sys.stdout.write(text)
            sys.stdout.flush()

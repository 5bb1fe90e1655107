"""What every verb shows while it works: a header, bars with an ETA, and figures in words."""

import time
from collections.abc import Callable

from rich import progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

console = Console(highlight=False)


class Bar:
    """A live bar on a terminal, plain lines elsewhere."""

    def __init__(self, first: int, steps: int):
        self.live = console.is_terminal and not console.quiet
        self.steps = steps
        self._began, self._first = time.perf_counter(), first
        self._progress = progress.Progress(
            TextColumn("[bold]training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=False),
            console=console,
            disable=not self.live,
            transient=True,
        )
        self._task = self._progress.add_task("train", total=steps, completed=first, figures="")

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def advance(self, step: int) -> None:
        """Steps done."""
        self._progress.update(self._task, completed=step)

    def figures(self, step: int, text: str) -> None:
        """The latest numbers."""
        self._progress.update(self._task, completed=step, figures=text)
        if not self.live:
            elapsed = time.perf_counter() - self._began
            left = elapsed / max(step - self._first, 1) * (self.steps - step)
            console.print(f"step {step}/{self.steps}  {text}  elapsed {duration(elapsed)}  ETA {duration(left)}")

    def say(self, text: str) -> None:
        """A line that stays."""
        console.print(text, markup=False)


class Progress:
    """A bar with an ETA on a terminal; elsewhere a line now and then. Call it with what is done and what there is."""

    def __init__(self, what: str, every_sec: float = 10.0):
        self._what, self._every, self._began = what, every_sec, time.perf_counter()
        self._said, self._bar = self._began, PrepareProgress(lambda number: f"{number:,}")

    def __call__(self, done: int, total: int) -> None:
        if console.is_terminal:
            self._bar(self._what, done, total)
            if done >= total:
                self._bar.finish()
        elif (now := time.perf_counter()) - self._said >= self._every and done < total:
            self._said, elapsed = now, now - self._began
            left = duration(elapsed / max(done, 1) * (total - done))
            console.print(f"{self._what}: {done:,} of {total:,}  elapsed {duration(elapsed)}  ETA {left}")


def header(title: str, rows: dict[str, str]) -> None:
    """A table of facts."""
    table = Table(title=f"[bold]{title}", show_header=False, box=None, title_justify="left", padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column()
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)


class PrepareProgress:
    """Progress of data preparation: a line when a phase starts and one when it ends, a bar on a terminal.

    `words`: how an amount is written.
    """

    def __init__(self, words: Callable[[float], str] | None = None) -> None:
        self._words = words or size
        self._progress: progress.Progress | None = None
        self._phase = ""
        self._began = 0.0

    def __call__(self, phase: str, done: int, total: int) -> None:
        if phase != self._phase:
            self.finish()
            self._phase, self._began = phase, time.perf_counter()
            bar = progress.Progress(
                TextColumn(f"[bold]{phase}"),
                BarColumn(),
                TextColumn("{task.percentage:.0f} % of {task.fields[size]}"),
                TextColumn("ETA"),
                TimeRemainingColumn(compact=True),
                console=console,
                disable=console.quiet or not console.is_terminal,
                transient=True,
            )
            self._task = bar.add_task(phase, total=total, size=self._words(total))
            bar.start()
            self._progress = bar
        assert self._progress is not None
        self._progress.update(self._task, completed=done, total=total)

    def finish(self) -> None:
        """Ends the phase in hand."""
        if self._progress is not None:
            self._progress.stop()
            console.print(f"{self._phase}: {duration(time.perf_counter() - self._began)}", style="dim")
            self._progress = None


def duration(seconds: float) -> str:
    """1 d 02 h, 3 h 05 min, 4 min 10 s, 12.3 s."""
    if seconds >= 86400:
        return f"{int(seconds // 86400)} d {int(seconds % 86400 // 3600):02} h"
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02} min"
    if seconds >= 60:
        return f"{int(seconds // 60)} min {int(seconds % 60):02} s"
    return f"{seconds:.1f} s"


def count(number: float) -> str:
    """950, 1.2 k, 124.4 M, 3.1 B."""
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= scale:
            return f"{number / scale:.1f} {unit}"
    return f"{number:.0f}"


def size(num_bytes: float) -> str:
    """Bytes in binary units."""
    for unit, scale in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.2f} {unit}"
    return f"{num_bytes:.0f} B"

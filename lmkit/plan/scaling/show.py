"""A law, for people."""

from rich.console import Console
from rich.table import Table

from lmkit.pages.chart import compact
from lmkit.plan.scaling.fit import NUM_PARAMS
from lmkit.plan.scaling.result import Result
from lmkit.plan.scaling.runs import FinishedRun

_MEANS = {
    "E": "nats a token that no size and no text would save",
    "A": "",
    "B": "",
    "a": "what size brings",
    "b": "what text brings",
    "b/(a+b)": "the best N grows as FLOPs to this power",
    "a/(a+b)": "the best D grows as FLOPs to this power",
}


def show(console: Console, result: Result) -> None:
    """The law first, then how well it holds, then what follows."""
    law, what = result.fit.law, "without embeddings" if result.count == "non_embedding" else "all"
    console.print(
        f"[bold]loss = {law.E:.4g} + {law.A:.4g} / N^{law.a:.3f} + {law.B:.4g} / D^{law.b:.3f}[/]\n"
        f"N parameters ({what}), D tokens seen, nats a token; of {len(result.fitted)} runs\n",
        soft_wrap=True,
    )
    _show_figures(console, result)
    _show_runs(console, result)
    _show_best(console, result)


def _show_figures(console: Console, result: Result) -> None:
    rows = [(name, f"{value:.4g}", _span(interval, "{:.3g}"), _MEANS[name])
            for name, (value, interval) in result.figures().items()]  # fmt: skip
    _table(console, "parameters", ("", "value", "90 %", ""), rows)
    if bounds := result.at_bounds():
        console.print(
            f"[bold red]not told by these runs[/]: {', '.join(bounds)} (at its bound, or of a term that is nothing)",
            soft_wrap=True,
        )
    spare = len(result.fitted) - NUM_PARAMS
    spare, n = len(result.fitted) - NUM_PARAMS, len(result.fitted)
    few = (
        ""
        if spare > NUM_PARAMS
        else (f". These are only {spare} runs more than the law has parameters: the intervals are too narrow")
    )
    console.print(
        f"intervals: {len(result.fit.draws)} fits, each with other weights of the {n} runs. What another seed, rate or "
        f"text would change is not in them{few}\n",
        soft_wrap=True,
    )


def _show_runs(console: Console, result: Result) -> None:
    rows = [_row(result, run, float(result.fit.law.loss(result.size(run), run.tokens))) for run in result.fitted]
    rows += [_row(result, one.run, one.loss) for one in result.predictions()]
    _table(console, "runs", ("", "N", "D", "visits", "FLOPs", "measured", "law", "off"), rows)
    for one in result.predictions():
        verdict = "[bold green]inside[/]" if one.inside else "[bold red]outside[/]"
        console.print(
            f"held out: {one.run.name} was to reach {one.loss:.4f} (90 %: {_span(one.interval, '{:.4f}')}) and reached "
            f"{one.run.loss:.4f}: {verdict}\n",
            soft_wrap=True,
        )
    again = [run.name for run in result.runs if run.epochs > 4]
    if again:  # Muennighoff et al. 2023, section 5: up to four visits are nearly as good as new text
        console.print(f"text seen more than four times is worth less than D says: {', '.join(again)}\n", soft_wrap=True)


def _row(result: Result, run: FinishedRun, law: float) -> tuple[str, ...]:
    visits = f"{run.epochs:.2f}" if run.epochs else ""
    size, off = compact(result.size(run), 3), f"{100 * (run.loss / law - 1):+.2f} %"
    return run.name, size, compact(run.tokens, 3), visits, f"{run.flops:.1e}", f"{run.loss:.4f}", f"{law:.4f}", off


def _show_best(console: Console, result: Result) -> None:
    rows = []
    for one in result.best():
        far = f"{one.beyond:.3g} x the largest run" if one.beyond > 1.01 else ""
        rows.append((
            f"{one.flops:.2e}", f"{compact(one.params, 3)} ({_span(one.params_interval)})",
            f"{compact(one.tokens, 3)} ({_span(one.tokens_interval)})",
            f"{one.ratio:.3g} ({_span(one.ratio_interval, '{:.3g}')})",
            f"{one.loss:.4f} ({_span(one.loss_interval, '{:.3f}')})", far,
        ))  # fmt: skip
    names = ("6 N D", "N", "D", "tokens a parameter", "loss", "")
    _table(console, "the best use of FLOPs, by the law (90 % in brackets)", names, rows)


def _span(interval: tuple[float, float], form: str = "") -> str:
    low, high = (form.format(end) if form else compact(end, 3) for end in interval)
    return f"{low} to {high}"


def _table(console: Console, title: str, names: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    table = Table(title=f"[bold]{title}", title_justify="left", box=None)
    for name in names:
        table.add_column(
            name, justify="right" if name in ("value", "N", "D", "visits", "measured", "law", "off") else "left"
        )
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print()

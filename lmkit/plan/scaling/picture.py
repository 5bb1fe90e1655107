"""A law as a picture, or as a page with its tables."""

import base64
import io

from rich.console import Console

from lmkit.pages.chart import escape
from lmkit.pages.law import Dot, draw_law
from lmkit.pages.page import html_page
from lmkit.plan.scaling.result import Result
from lmkit.plan.scaling.show import show


def draw_svg(result: Result) -> str:
    """The runs and the law in two panels: loss by tokens, and by FLOPs."""
    predicted = {one.run.name: (*one.interval, one.loss) for one in result.predictions()}
    dots = [
        Dot(run.name, result.size(run), run.tokens, result.spent(run), run.loss, predicted.get(run.name))
        for run in result.runs
    ]
    law = result.fit.law
    return draw_law(dots, lambda n, d: float(law.loss(n, d)), lambda flops: law.best(flops))


def draw_page(result: Result) -> str:
    """One HTML page with the picture and the tables, which asks for nothing from outside."""
    console = Console(file=io.StringIO(), record=True, width=170, highlight=False)
    show(console, result)
    svg = base64.b64encode(draw_svg(result).encode()).decode()  # an image of its own: the page has other styles
    picture = f'<img alt="Runs, and the law fitted to them" src="data:image/svg+xml;base64,{svg}">'
    return html_page("A scaling law", "", [("", picture), ("", f"<pre>{escape(console.export_text())}</pre>")])

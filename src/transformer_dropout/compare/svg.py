"""How figures are drawn: SVG text that takes its ink from the page and so suits light and dark."""

import io
import re
import textwrap
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

Dash = tuple[float, tuple[float, ...]]  # offset, then lengths of line and gap in points; no lengths: solid

# Okabe and Ito's colours, told apart by colour-blind readers on white and on dark; without yellow and black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_LINES: tuple[Dash, ...] = ((0, ()), (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)))
_MARKERS = ("o", "s", "^", "D")
INK = "#010203"  # stands for the page's text colour until the figure is text


@dataclass(frozen=True, kw_only=True)
class Style:
    """How one arm is drawn in every figure of a page."""

    colour: str
    line: Dash
    marker: str


def styles(arms: Sequence[str], reference: str) -> dict[str, Style]:
    """Return a style per arm: ink for the reference; colours, then dashes and markers, for 24 others."""
    others = [arm for arm in arms if arm != reference]
    found = {reference: Style(colour=INK, line=_LINES[0], marker="*")}
    for at, arm in enumerate(others):
        turn = (at // len(COLOURS)) % len(_LINES)
        found[arm] = Style(colour=COLOURS[at % len(COLOURS)], line=_LINES[turn], marker=_MARKERS[turn])
    return found


def legend(
    figure: Figure, looks: dict[str, Style], *, marker: bool = False, heading: str | None = None
) -> Legend:
    """Put the arms' names beside a figure."""
    lines = [
        Line2D(
            [],
            [],
            color=look.colour,
            linestyle="none" if marker else look.line,
            marker=look.marker if marker else "",
        )
        for look in looks.values()
    ]
    return figure.legend(lines, [short(arm) for arm in looks], loc="outside right center", title=heading)


def short(arm: str) -> str:
    """Return a name that fits beside a figure."""
    # The space keeps a name with a leading underscore in the legend, which leaves such names out.
    return textwrap.shorten(f"{arm:.40}", 26, placeholder="…") if not arm.startswith("_") else f" {arm:.25}"


@contextmanager
def ink() -> Generator[None, None, None]:
    """Draw in the page's colour, with text as text, and without reading ``$`` in a name as a formula."""
    ink = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
    settings = dict.fromkeys(ink, INK) | {
        "svg.fonttype": "none",
        "text.parse_math": False,
        "font.size": 9.5,
        "axes.titlesize": "medium",
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.alpha": 0.13,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "lines.linewidth": 1.8,
        "legend.frameon": False,
        "legend.title_fontsize": "small",
        "legend.handlelength": 2.6,
    }
    with mpl.rc_context(settings), warnings.catch_warnings():
        # The page's fonts draw the text; matplotlib's own font only measures it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def svg(figure: Figure, title: str) -> str:
    """Return a figure under its title as SVG text that takes the page's width."""
    figure.suptitle(textwrap.fill(title, 96), x=0.01, ha="left", fontsize="large", fontweight="bold")
    # Names of clip paths must differ between the figures of one page.
    mpl.rcParams["svg.hashsalt"] = title
    page = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(page, format="svg", transparent=True, metadata=nothing)
    text = page.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(
        r'<g id="[^"]*">', "<g>", text
    )  # the same names in every figure, and nothing refers to them
    # Without width and height the figure takes the page's width.
    size = re.compile(r' (?:width|height)="[\d.]+pt"')
    head, rest = text.split(">", 1)
    return f'{size.sub("", head)} role="img" aria-label="{escape(title)}">{rest}'

"""Figures as SVG text: names beside them, the ink of the page, and the same text every time."""

import re
from itertools import pairwise

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from transformer_dropout.compare.svg import COLOURS, INK, Style, ink, legend, short, styles, svg


def test_arms_have_colours_first_then_dashes_and_markers():
    arms = [f"arm {n}" for n in range(26)]
    looks = styles(arms, "arm 4")
    assert next(iter(looks)) == "arm 4" and set(looks) == set(arms)
    assert looks["arm 4"] == Style(colour=INK, line=(0, ()), marker="*")
    others = [look for name, look in looks.items() if name != "arm 4"]
    assert [look.colour for look in others[:7]] == [*COLOURS, COLOURS[0]]
    assert len({(look.colour, look.line, look.marker) for look in others[:24]}) == 24
    assert [look.marker for look in others[::6]] == ["o", "s", "^", "D", "o"]
    assert others[0].line == others[24].line == (0, ()) != others[6].line


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain", "plain"),
        ("_hidden", " _hidden"),
        ("_" + "x" * 40, " _" + "x" * 24),
        ("three words that are too long to stand", "three words that are too…"),
        ("x" * 26, "x" * 26),
        ("x" * 41 + " more", "…"),
    ],
)
def test_a_name_fits_beside_a_figure(name, shown):
    assert short(name) == shown


def test_a_legend_shows_lines_or_markers():
    looks = styles(["a", "_b"], "a")
    for marker in (False, True):
        figure = Figure()
        made = legend(figure, looks, marker=marker, heading="arms" if marker else None)
        assert [text.get_text() for text in made.get_texts()] == ["a", " _b"]
        assert made.get_title().get_text() == ("arms" if marker else "")
        lines = made.get_lines()
        assert [line.get_color() for line in lines] == [INK, COLOURS[0]]
        assert [line.get_marker() for line in lines] == (["*", "o"] if marker else ["", ""])
        assert [line.get_linestyle() for line in lines] == (["None"] * 2 if marker else ["--", "--"])


def drawn(title="A <title>"):
    with ink():
        figure = Figure(figsize=(4, 3))
        figure.subplots().plot([1, 2], [3, 4], color=INK, label="$x$")
        return svg(figure, title)


def test_a_figure_is_text_of_the_pages_width_under_its_title():
    text = drawn()
    assert text.startswith("<svg ") and text.endswith("</svg>\n")
    head = text.split(">", 1)[0]
    assert 'role="img" aria-label="A &lt;title&gt;"' in head and "viewBox" in head
    assert " width=" not in head and " height=" not in head and "<metadata>" not in text
    assert "#ffffff" not in text and " currentColor; " in text and '<g id="' not in text
    assert re.search(r' x="2\.88" y="[\d.]+" transform="[^"]+">A &lt;title&gt;</text>', text)
    assert INK not in text
    assert "date" not in text.lower()


def test_figures_are_the_same_every_time_and_clip_under_names_of_their_own():
    first, again, other = drawn(), drawn(), drawn("Another")
    assert first == again
    clips = [text.partition('<clipPath id="')[2].partition('"')[0] for text in (first, other)]
    assert all(a != b for a, b in pairwise(clips)) and all(clips)


def test_long_titles_are_wrapped_and_stand_out():
    lines = re.findall(r'style="([^"]*)"[^>]*>(word[^<]*)</text>', drawn("word " * 40))
    assert [len(words) for _, words in lines] == [94, 94, 9]
    assert all("bold" in style or "700" in style for style, _ in lines)


def test_the_ink_is_the_pages_and_is_put_back():
    before = mpl.rcParams["text.color"], mpl.rcParams["font.size"]
    with ink():
        names = (
            "text.color",
            "axes.edgecolor",
            "axes.labelcolor",
            "xtick.color",
            "ytick.color",
            "grid.color",
        )
        assert {mpl.rcParams[name] for name in names} == {INK}
        assert (mpl.rcParams["svg.fonttype"], mpl.rcParams["text.parse_math"]) == ("none", False)
        assert (mpl.rcParams["axes.spines.top"], mpl.rcParams["axes.spines.right"]) == (False, False)
        assert mpl.rcParams["axes.grid"] and mpl.rcParams["axes.axisbelow"]
        assert not mpl.rcParams["legend.frameon"]
    assert (mpl.rcParams["text.color"], mpl.rcParams["font.size"]) == before


@pytest.mark.filterwarnings("error")
def test_a_letter_that_the_measuring_font_lacks_is_no_warning():
    assert "日本" in drawn("日本")

"""Small SVG pictures with the same bytes everywhere: matrices as squares, and charts."""

import math
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

BLUE, ORANGE, PALE, INK = "#0072B2", "#D55E00", "#E6EBF0", "#24292F"
LINES = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
CELL = 7


def page(width: float, height: float, parts: Iterable[str]) -> str:
    """Return an SVG file."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}">'
    style = f"<style>text{{font:11px sans-serif;fill:{INK}}}.l{{fill:none;stroke-width:1.6}}</style>"
    return "\n".join([head, style, '<rect width="100%" height="100%" fill="#fff"/>', *parts, "</svg>"]) + "\n"


def text(x: float, y: float, words: str, anchor: str = "start") -> str:
    words = words.replace("&", "&amp;").replace("<", "&lt;")
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{words}</text>'


def colour(value: float, middle: float) -> str:
    """Return pale at the middle, orange a whole unit below and blue a whole unit above, in ten shades."""
    shade = min(round(10 * abs(value - middle)), 10) / 10
    ends = zip(parts_of(PALE), parts_of(ORANGE if value < middle else BLUE), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * shade):02x}" for a, b in ends)


def parts_of(hexadecimal: str) -> list[int]:
    return [int(hexadecimal[at : at + 2], 16) for at in (1, 3, 5)]


def cells(x: float, y: float, values: Tensor, middle: float = 1.0) -> str:
    """Return a matrix as squares, one path a colour; what is not finite stays empty."""
    squares: dict[str, list[str]] = {}
    for row, line in enumerate(values.tolist()):
        for column, value in enumerate(line):
            if math.isfinite(value):
                place = f"M{x + column * CELL:g} {y + row * CELL:g}h6v6h-6z"
                squares.setdefault(colour(value, middle), []).append(place)
    return "\n".join(f'<path fill="{fill}" d="{"".join(d)}"/>' for fill, d in sorted(squares.items()))


def panels(rows: Sequence[tuple[str, Sequence[Tensor]]], caption: str, middle: float = 1.0) -> str:
    """Return rows of matrices, each row with its name, and a line of text below."""
    parts, x, y = [], 8.0, 18.0
    for name, matrices in rows:
        x = 8.0
        parts.append(text(x, y, name))
        for matrix in matrices:
            parts.append(cells(x, y + 6, matrix, middle))
            x += matrix.shape[1] * CELL + 12
        y += rows[0][1][0].shape[0] * CELL + 28
    width = max(x, 7.0 * len(caption))
    return page(width, y + 4, [*parts, text(8, y - 6, caption)])


def chart(
    x: float,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    words: tuple[str, str],
    *,
    dots: bool = False,
) -> list[str]:
    """Return one chart, about 330 wide, of named curves on common axes; ``words`` name the axes."""
    across, up = zip(*(point for curve in curves.values() for point in curve), strict=True)
    left, right, low, high = min(across), max(across), min(0.0, *up), max(up)
    wide, tall, left_edge, top = 160.0, 130.0, x + 34, 24.0

    def at(point: tuple[float, float]) -> str:
        along = left_edge + wide * (point[0] - left) / (right - left)
        return f"{along:.1f} {top + tall * (high - point[1]) / (high - low):.1f}"

    parts = [
        f'<path class="l" stroke="#999" stroke-width="1" d="M{left_edge:g} {top:g}v{tall:g}h{wide:g}"/>',
        text(left_edge - 4, top + 8, f"{high:.2g}", "end"),
        text(left_edge - 4, top + tall, f"{low:.2g}", "end"),
        text(left_edge, top + tall + 14, f"{left:.2g}"),
        text(left_edge + wide, top + tall + 14, f"{right:.3g}", "end"),
        text(left_edge + wide / 2, top + tall + 28, words[0], "middle"),
        text(x + 6, top - 9, words[1]),
    ]
    for place, ((name, curve), ink) in enumerate(zip(curves.items(), LINES, strict=False)):
        if dots:
            parts.append(f'<g fill="{ink}">{"".join(dot(at(point)) for point in curve)}</g>')
        else:
            parts.append(f'<path class="l" stroke="{ink}" d="M{"L".join(map(at, curve))}"/>')
        key, level = left_edge + wide + 8, top + 8 + 15 * place
        parts.append(f'<path stroke="{ink}" stroke-width="3" d="M{key:g} {level:g}h10"/>')
        parts.append(text(key + 14, level + 4, name))
    return parts


def dot(place: str) -> str:
    x, y = place.split()
    return f'<circle cx="{x}" cy="{y}" r="1.8"/>'


def charts(*contents: list[str], width: float = 330.0, caption: str = "") -> str:
    """Return charts side by side; each was drawn at a multiple of ``width``."""
    parts = [part for content in contents for part in content]
    return page(width * len(contents), 208 if caption else 190, [*parts, text(8, 200, caption)])

"""The benchmark's plot: a bar for each row, whose end tells how far the gateway comes, as SVG."""

from collections.abc import Sequence
from xml.sax.saxutils import escape

from bench.row import REACH_MOST, Row

_LEFT, _WIDTH, _LINE = 330, 480, 24  # pixels
_SHOWN = 2.0  # times the bar; longer ones are cut off there
_STYLE = (
    "text{font:13px sans-serif;fill:#24292f}.pass{fill:#2da44e}.short{fill:#cf222e}"
    "line{stroke:#24292f;stroke-dasharray:4}rect.page{fill:#fff}"
)


def svg(rows: Sequence[Row]) -> str:
    """Draw the rows; the line that crosses them is the bar, and right of it is better."""
    height = _LINE * (len(rows) + 2)
    at_bar = _LEFT + _WIDTH / _SHOWN
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 60}" height="{height}">',
        f'<style>{_STYLE}</style><rect class="page" width="100%" height="100%"/>',
    ]
    for number, row in enumerate(rows, 1):
        top = _LINE * number
        length = min(row.reach, _SHOWN) / _SHOWN * _WIDTH
        more = "" if row.reach < REACH_MOST else "&gt; "
        out += [
            f'<text x="{_LEFT - 8}" y="{top + 16}" text-anchor="end">{escape(row.name)}</text>',
            f'<rect x="{_LEFT}" y="{top + 4}" width="{length:.0f}" height="{_LINE - 8}"'
            f' class="{"pass" if row.passes else "short"}"/>',
            f'<text x="{_LEFT + length + 6:.0f}" y="{top + 16}">{more}{row.reach:.2f}</text>',
        ]
    out += [
        f'<line x1="{at_bar:.0f}" x2="{at_bar:.0f}" y1="{_LINE - 4}" y2="{height - _LINE}"/>',
        f'<text x="{at_bar:.0f}" y="16" text-anchor="middle">the bar</text>',
        "</svg>",
    ]
    return "\n".join(out) + "\n"

"""The README's plot: what is sent for an update, by form, as an SVG of bars."""

from __future__ import annotations

import html
from pathlib import Path

from bench.pairs import Pair
from bench.sizes import Size

_LEFT, _BAR, _GAP, _WIDTH = 230, 16, 12, 420
_COLOURS = {"mpota delta": "#2a7f62", "mpota compressed": "#2a7f62"}
_OTHER = "#9aa5b1"
_SHOWN = ("mpota delta", "bsdiff4", "detools lzma", "detools heatshrink", "mpota compressed")
_STYLE = "font: 12px sans-serif; fill: #57606a"


def draw(pair: Pair, sizes: list[Size]) -> str:
    """Bars for one pair: each form's share of the app."""
    shares = {size.tool: size.share for size in sizes if size.share is not None}
    bars = [("the app as it is", 1.0)]
    bars += [(tool, shares[tool]) for tool in reversed(_SHOWN) if tool in shares]
    height = _BAR * len(bars) + _GAP * (len(bars) + 1) + 24
    title = f"Bytes sent for an update: {pair.name}, {pair.what}, {len(pair.new):,} bytes"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 80}" '
        f'height="{height}" role="img" aria-label="{html.escape(title)}">',
        f'<text x="8" y="18" style="{_STYLE}; font-weight: bold">{html.escape(title)}</text>',
    ]
    y = 24 + _GAP
    for tool, share in bars:
        width = max(share * _WIDTH, 1)
        colour = _COLOURS.get(tool, _OTHER)
        text = f"{share:.1%}"
        lines += [
            f'<text x="{_LEFT - 8}" y="{y + 12}" text-anchor="end" style="{_STYLE}">{tool}</text>',
            f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{colour}"/>',
            f'<text x="{_LEFT + width + 6:.1f}" y="{y + 12}" style="{_STYLE}">{text}</text>',
        ]
        y += _BAR + _GAP
    return "\n".join([*lines, "</svg>"]) + "\n"


def write(path: Path, rows: list[tuple[Pair, list[Size]]]) -> None:
    pair, sizes = next(row for row in rows if row[0].what.startswith("function"))
    path.parent.mkdir(exist_ok=True)
    path.write_text(draw(pair, sizes), encoding="utf-8")

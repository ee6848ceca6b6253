"""Plots as SVG by hand: bars, in colours that are read on light and on dark."""

import html
import math

ROW, LABEL, WIDTH, TOP = 26, 270, 470, 44
# A mid grey is read on both grounds; the bars' colours too.
INK, OURS, OTHERS = "#808080", "#2f8f6b", "#7a8fb5"


def bars(title, values, logarithmic):
    """One bar for each `(name, value)`; a logarithmic scale begins at the power of ten below the least."""
    least = 10 ** math.floor(math.log10(max(min(value for _, value in values), 1e-9)))
    greatest = max(value for _, value in values) or 1.0
    span = math.log10(max(value for _, value in values) / least) or 1.0
    height = TOP + ROW * len(values) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LABEL + WIDTH + 90} {height}" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="{INK}">',
        f'<text x="8" y="22" font-size="15">{html.escape(title)}</text>',
    ]
    for number, (name, value) in enumerate(values):
        y = TOP + ROW * number
        share = math.log10(max(value, least) / least) / span if logarithmic else value / greatest
        long = max(2.0, WIDTH * share)
        colour = OURS if name.startswith(("embedded", "fleet")) else OTHERS
        parts += [
            f'<text x="{LABEL - 8}" y="{y + 14}" text-anchor="end">{html.escape(name)}</text>',
            f'<rect x="{LABEL}" y="{y}" width="{long:.1f}" height="{ROW - 7}" rx="2" fill="{colour}"/>',
            f'<text x="{LABEL + long + 6:.1f}" y="{y + 14}">{value:,.0f}</text>',
        ]
    return "\n".join([*parts, "</svg>\n"])

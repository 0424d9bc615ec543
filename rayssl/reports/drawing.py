"""What every picture of a report shares: style, colours, and the way to SVG that stands inside the page.

Text and axes take the page's colour, so that pictures read on light and dark. Data colours are Okabe and Ito's, which
readers with any common colour vision can tell apart.
"""

from __future__ import annotations

import io
import re
from html import escape
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BROWN, GREY = COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C6D46", "#888888"
)  # fmt: skip
CRISP = "crisp"  # the gid of artists whose edges should not be smoothed: cells that touch
INK, FAINT = "#010203", "#040506"  # stand for the page's text colour and its line colour
WIDTH = 9.8  # inches, of a picture that fills the page
# Artists take their style when they are made, so every function that makes some is decorated with this.
STYLE: Any = {
    "font.size": 9.5, "axes.titlesize": 10, "axes.labelsize": 9.5, "legend.fontsize": 8.8,
    "text.color": INK, "axes.edgecolor": FAINT, "axes.labelcolor": INK, "axes.titlecolor": INK,
    "xtick.color": FAINT, "ytick.color": FAINT, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "axes.xmargin": 0.015, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "lines.linewidth": 1.7,
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none", "svg.fonttype": "none",
}  # fmt: skip


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    """A figure of that size in inches with its axes (one, or an array), grid behind the data."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots(rows, columns)
    for one in np.ravel(axes):
        one.grid(True, color=FAINT, linewidth=0.6)
        one.set_axisbelow(True)
    return figure, axes


def svg_text(figure: Figure, salt: str) -> str:
    """The figure as an ``<svg>`` element to stand inside HTML: no header, no metadata, colours of the page."""
    target = io.StringIO()
    with rc_context({"svg.hashsalt": salt}):
        figure.savefig(target, format="svg", metadata={"Date": None})
    text = target.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"| version="1\.1"', "", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r'\1 role="img"', text, count=1)
    text = text.replace(f'<g id="{CRISP}"', '<g shape-rendering="crispEdges"')
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # the ids of groups repeat from picture to picture
    return text.replace(INK, "currentColor").replace(FAINT, "var(--line)").replace(BLUE.lower(), "var(--blue)")


def framed(picture: str, caption: str) -> str:
    """The picture, an ``<svg>`` element, as a figure with its caption, which is escaped."""
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"

"""What all pictures of a report share: style, colours, and the conversion to SVG inside the page.

Text and axes have the page's colours, so that pictures are readable on light and dark backgrounds. Data colours are
those of Okabe and Ito: readers with any common colour vision can distinguish them.
"""

from __future__ import annotations

import io
import re
from html import escape
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context, rcParams
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BROWN, GREY = COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C6D46", "#888888"
)  # fmt: skip
CRISP = "crisp"  # the gid of artists whose edges are not smoothed, because their cells touch
INK, FAINT = "#010203", "#040506"  # placeholders for the page's text colour and its line colour
WIDTH = 9.8  # inches: the width of a picture that fills the page
# An artist takes its style when it is made, so every function that makes artists is decorated with this.
STYLE: Any = {
    "font.size": 9.5, "axes.titlesize": 10, "axes.labelsize": 9.5, "legend.fontsize": 8.8,
    "text.color": INK, "axes.edgecolor": FAINT, "axes.labelcolor": INK, "axes.titlecolor": INK,
    "xtick.color": FAINT, "ytick.color": FAINT, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "axes.xmargin": 0.015, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "lines.linewidth": 1.7,
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none", "svg.fonttype": "none",
}  # fmt: skip
PAPER_INK, PAPER_FAINT = "#1C2430", "#C9D0D9"
# The same style with colours of its own on white, for pictures that stand alone.
PAPER: Any = {key: {INK: PAPER_INK, FAINT: PAPER_FAINT}.get(value, value) for key, value in STYLE.items()} | {
    "figure.facecolor": "white", "savefig.facecolor": "white", "savefig.dpi": 160,
}  # fmt: skip


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    """A figure of this size in inches, and its axes (one, or an array) with a grid behind the data."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots(rows, columns)
    for one in np.ravel(axes):
        one.grid(True, color=rcParams["axes.edgecolor"], linewidth=0.6)
        one.set_axisbelow(True)
    return figure, axes


def svg_text(figure: Figure, salt: str) -> str:
    """The figure as an ``<svg>`` element for an HTML page: no header, no metadata, and the page's colours."""
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


def file_bytes(figure: Figure, kind: Literal["png", "svg", "pdf"]) -> bytes:
    """The figure as a file of its own. Make it with the style `PAPER`: `STYLE` has no colours outside a page."""
    target = io.BytesIO()
    figure.savefig(target, format=kind)
    return target.getvalue()


def framed(picture: str, caption: str) -> str:
    """The ``<svg>`` element ``picture`` as an HTML figure with its caption, which is escaped."""
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"

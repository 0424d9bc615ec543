"""What all pictures of a report share: style, colours, and the conversion to SVG inside the page.

Text and axes have the page's colours, so that pictures are readable on light and dark backgrounds. Data colours are
those of Okabe and Ito: readers with any common colour vision can distinguish them.

A function with `picture` draws on a `Canvas`, once for wide pages and once for narrow ones, on which panels stand below
each other: a picture that only shrinks cannot be read on a phone.
"""

from __future__ import annotations

import functools
import hashlib
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Concatenate, Literal, ParamSpec

import numpy as np
from matplotlib import rc_context, rcParams
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from rayssl.reports.content import Column, Picture, Row, Table

P = ParamSpec("P")

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BROWN, GREY = COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C6D46", "#888888"
)  # fmt: skip
CRISP = "crisp"  # the gid of artists whose edges are not smoothed, because their cells touch
INK, FAINT, PAGE = "#010203", "#040506", "#070809"  # placeholders for the page's colours of text, lines and background
WIDTH = 9.8  # inches: the width of a picture that fills the page
HALF, THIRD = 4.9, 3.7  # of one of two or three pictures beside each other
NARROW = 3.7  # of any picture on a phone
_HOVER_POINTS = (240, 12_000)  # the most points under the pointer: of a curve, and of all curves of a picture
# An artist takes its style when it is made, so every function that makes artists is decorated with this.
STYLE: Any = {
    "font.size": 9.5, "axes.titlesize": 10, "axes.labelsize": 9.5, "legend.fontsize": 8.8,
    "text.color": INK, "axes.edgecolor": FAINT, "axes.labelcolor": INK, "axes.titlecolor": INK,
    "xtick.color": FAINT, "ytick.color": FAINT, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "axes.xmargin": 0.015, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "lines.linewidth": 1.7,
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none", "svg.fonttype": "none",
}  # fmt: skip
_DIGITS = re.compile(r"(\.\d\d)\d+")  # hundredths of a point cannot be seen
PAPER_INK, PAPER_FAINT = "#1C2430", "#C9D0D9"
# The same style with colours of its own on white, for pictures that stand alone.
PAPER: Any = {key: {INK: PAPER_INK, FAINT: PAPER_FAINT}.get(value, value) for key, value in STYLE.items()} | {
    "figure.facecolor": "white", "savefig.facecolor": "white", "savefig.dpi": 160,
}  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """What a function that draws returns: the ``title`` of its picture, and what it ``says`` in figures, for readers of
    screens. ``table``: the figures of the picture; without it those of the curves that `Canvas.follow` was given.
    """

    title: str
    says: str = ""
    table: Table | None = None


@dataclass
class _Curve:
    axes: Any
    x_name: str
    name: str
    x: Any
    y: Any
    unit: str


class Canvas:
    """What one rendition of a picture is drawn on: ``width`` in inches, ``narrow`` for a phone."""

    def __init__(self, width: float, narrow: bool) -> None:
        self.width, self.narrow = width, narrow
        self.drawn: Figure | None = None
        self.curves: list[_Curve] = []

    def figure(self, height: float, rows: int = 1, columns: int = 1, narrow: float | None = None) -> tuple[Figure, Any]:
        """A figure of ``height`` inches, see `new_figure`. On a narrow page panels stand below each other.

        It is then ``narrow`` inches high (default: 0.85 of the height for each panel of a row).
        """
        if self.narrow:
            height = narrow if narrow is not None else 0.85 * height * columns
            rows, columns = rows * columns, 1
        self.drawn, axes = new_figure(self.width, height, rows, columns)
        return self.drawn, axes

    def take(self, figure: Figure) -> None:
        """Uses a figure that was made without `figure`."""
        self.drawn = figure

    def columns(self, wide: int, narrow: int = 1) -> int:
        """The columns of a legend."""
        return min(wide, narrow) if self.narrow else wide

    def follow(
        self, axes: Any, name: str, x: ArrayLike, y: ArrayLike, *, over: str = "Step", unit: str = "", scale: float = 1
    ) -> None:
        """Shows the values ``y [n]`` times ``scale`` of the curve ``name`` under the pointer, at its ``x [n]``, rising.

        ``over`` says what x is, and ``unit`` what y is in. Not finite values are left out.
        """
        x, y = np.asarray(x, np.float64), scale * np.asarray(y, np.float64)
        known = np.isfinite(x) & np.isfinite(y)
        if known.any():
            self.curves.append(_Curve(axes, over, name, x[known], y[known], unit))


def picture(
    width: float = WIDTH,
) -> Callable[[Callable[Concatenate[Canvas, P], Drawing | None]], Callable[P, Picture | None]]:
    """Makes a function that draws on a `Canvas` of ``width`` inches into one that returns both renditions.

    It returns None where there is nothing to draw. Pictures of the width `THIRD` look the same on all pages.
    """

    def decorate(draw: Callable[Concatenate[Canvas, P], Drawing | None]) -> Callable[P, Picture | None]:
        @functools.wraps(draw)
        @rc_context(STYLE)
        def made(*args: P.args, **kwargs: P.kwargs) -> Picture | None:
            wide = Canvas(width, narrow=False)
            drawing = draw(wide, *args, **kwargs)
            if drawing is None:
                return None
            canvases = [wide]
            if width > THIRD:
                canvases.append(Canvas(NARROW, narrow=True))
                draw(canvases[1], *args, **kwargs)
            shown = [_rendition(canvas, drawing, draw.__name__) for canvas in canvases]
            table = drawing.table or _figures(wide.curves, drawing.title)
            return Picture(drawing.title, shown[0], shown[-1], _hover(wide, canvases[-1]), table)

        return made

    return decorate


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    """A figure of this size in inches, and its axes (one, or an array) with a grid behind the data."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots(rows, columns)
    for one in np.ravel(axes):
        one.grid(True, color=rcParams["axes.edgecolor"], linewidth=0.6)
        one.set_axisbelow(True)
    return figure, axes


def svg_text(figure: Figure, salt: str, label: str = "", says: str = "") -> str:
    """The figure as an ``<svg>`` element for an HTML page: no header, no metadata, and the page's colours.

    ``label`` and ``says`` are its name and description for readers of screens. Pictures of different ``salt`` share no
    ids.
    """
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
    text = re.sub(r' (d|x|y)="[^"]*"', lambda found: _DIGITS.sub(r"\1", found.group()), text)
    described = f"d{hashlib.sha256(salt.encode()).hexdigest()[:10]}"
    label = f' aria-label="{escape(label)}"' + (f' aria-describedby="{described}"' if says else "") if label else ""
    text = text.replace(' role="img"', f' role="img"{label}', 1)
    if says:
        text = re.sub(
            r"(<svg[^>]*>)", lambda found: f'{found[1]}<desc id="{described}">{escape(says)}</desc>', text, count=1
        )
    named = {INK: "currentColor", FAINT: "var(--line)", PAGE: "var(--paper)", BLUE.lower(): "var(--blue)"}
    return re.sub("|".join(named), lambda found: named[found.group()], text)


def file_bytes(figure: Figure, kind: Literal["png", "svg", "pdf"]) -> bytes:
    """The figure as a file of its own. Make it with the style `PAPER`: `STYLE` has no colours outside a page."""
    target = io.BytesIO()
    figure.savefig(target, format=kind)
    return target.getvalue()


def _rendition(canvas: Canvas, drawing: Drawing, name: str) -> str:
    assert canvas.drawn is not None
    salt = f"{name} {drawing.title} {canvas.width} {canvas.narrow}"
    return svg_text(canvas.drawn, salt, drawing.title, drawing.says or _told(canvas.curves))


def _told(curves: Sequence[_Curve]) -> str:
    """What the curves do, in a sentence each, for at most six."""
    said = [
        f"{c.name}: from {c.y[0]:.4g} to {c.y[-1]:.4g}{' ' * bool(c.unit)}{c.unit}, at the {c.x_name.lower()} from "
        f"{c.x[0]:.4g} to {c.x[-1]:.4g}."
        for c in curves[:6]
    ]
    return " ".join(said) + (f" And {len(curves) - 6} more curves." if len(curves) > 6 else "")


def _figures(curves: Sequence[_Curve], title: str) -> Table | None:
    """First, lowest, highest and last value of each curve."""
    rows: list[Row] = []
    for c in {curve.name: curve for curve in reversed(curves)}.values():  # a curve may be in two panels, over two axes
        low, high = int(c.y.argmin()), int(c.y.argmax())
        at = [f"{c.y[k]:.4g} (at {c.x[k]:.5g})" for k in (low, high)]
        rows.append(Row([c.name, c.unit or "-", f"{c.y[0]:.4g}", *at, f"{c.y[-1]:.4g}", f"{c.x[-1]:.5g}"]))
    if not rows:
        return None
    rows.reverse()
    heads = ["First", "Lowest", "Highest", "Last", f"Last {curves[0].x_name.lower()}"]
    columns = [Column("Curve"), Column("Unit"), *(Column(head, "number") for head in heads)]
    return Table(f"Figures: {title}", columns, rows)


def _hover(wide: Canvas, narrow: Canvas) -> dict[str, Any] | None:
    """The curves of each panel, and where the panel is in both renditions: left, top, right, bottom in units of the
    ``viewBox``, and the ends of the x axis.
    """
    if not wide.curves:
        return None
    most = max(24, min(_HOVER_POINTS[0], _HOVER_POINTS[1] // len(wide.curves)))
    panels: dict[int, dict[str, Any]] = {}
    for one, other in zip(wide.curves, narrow.curves, strict=True):
        if id(one.axes) not in panels:
            panels[id(one.axes)] = {
                "x": one.x_name, "wide": _place(one.axes), "narrow": _place(other.axes),
                "log": one.axes.get_xscale() == "log", "curves": [],
            }  # fmt: skip
        rows = np.unique(np.linspace(0, len(one.x) - 1, most).round().astype(int)) if len(one.x) > most else slice(None)
        x, y = ([float(f"{value:.5g}") for value in values[rows]] for values in (one.x, one.y))
        panels[id(one.axes)]["curves"].append({"name": one.name, "unit": one.unit, "x": x, "y": y})
    return {"x": "", "panels": list(panels.values())}


def _place(axes: Any) -> list[float]:
    box, (width, height) = axes.get_position(), 72 * axes.figure.get_size_inches()
    corners = [box.x0 * width, (1 - box.y1) * height, box.x1 * width, (1 - box.y0) * height]
    return [round(float(corner), 1) for corner in corners] + [float(f"{end:.6g}") for end in axes.get_xlim()]

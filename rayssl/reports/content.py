"""What a page is made of, as plain data: the templates know how each part looks, and escape all text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias


@dataclass(frozen=True)
class Code:
    """A command or a name inside a sentence."""

    text: str


@dataclass(frozen=True)
class Swatch:
    """The line of a group of runs, in its ``colour`` and its ``dashes`` (of SVG), beside the group's ``number``."""

    colour: str
    dashes: str
    number: int


@dataclass(frozen=True)
class Cell:
    """A cell with more than text: a ``swatch`` in front."""

    text: str
    swatch: Swatch | None = None


@dataclass(frozen=True)
class Column:
    """A column of texts, of numbers (to the right), or of code (keys, values, URIs)."""

    head: str
    kind: Literal["text", "number", "code"] = "text"
    swatch: Swatch | None = None


@dataclass(frozen=True)
class Row:
    """The cells of a row. ``marked`` rows are shaded; a ``section`` is a heading over the rows below it."""

    cells: Sequence[str | Cell]
    marked: bool = False
    section: bool = False


@dataclass(frozen=True)
class Table:
    """Rows below columns. The first cell of a row says what the row is about.

    ``caption`` is for readers of screens. ``notes`` are sentences below the table.
    """

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    notes: Sequence[str] = ()
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Picture:
    """A picture as two ``<svg>`` elements: for ``wide`` and for ``narrow`` pages. They may be the same.

    ``hover`` is what the script of the page shows of its curves; ``table`` has the figures that the picture shows.
    As text it is the wide one.
    """

    title: str
    wide: str
    narrow: str
    hover: dict[str, Any] | None = None
    table: Table | None = None

    def __str__(self) -> str:
        return self.wide


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of text and code. ``soft`` is for side remarks, ``problem`` for what is wrong."""

    parts: Sequence[str | Code]
    look: Literal["", "soft", "problem"] = ""
    kind: ClassVar[str] = "paragraph"


@dataclass(frozen=True)
class Listing:
    """Text as it is: a command, a file."""

    text: str
    kind: ClassVar[str] = "listing"


@dataclass(frozen=True)
class Problems:
    """A list of what is missing, each with the command that helps, or None."""

    items: Sequence[tuple[str, str | None]]
    kind: ClassVar[str] = "problems"


@dataclass(frozen=True)
class Figure:
    """A picture with one or more sentences that explain it."""

    picture: Picture
    caption: str
    kind: ClassVar[str] = "figure"


@dataclass(frozen=True)
class Grid:
    """Figures side by side, as many as there is room for: two or three."""

    figures: Sequence[Figure]
    columns: Literal[2, 3] = 2
    kind: ClassVar[str] = "grid"


@dataclass(frozen=True)
class Details:
    """Blocks that a reader opens."""

    summary: str
    blocks: Sequence[Block]
    kind: ClassVar[str] = "details"


@dataclass(frozen=True)
class Heading:
    """The heading of a part of a section."""

    text: str
    kind: ClassVar[str] = "heading"


Block: TypeAlias = Paragraph | Listing | Problems | Table | Figure | Grid | Details | Heading


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A whole page. ``facts`` stand below the title. ``cards`` are the main figures: a value and what it is.

    ``notes`` stand between the cards and the first section.
    """

    title: str
    heading: str
    facts: Sequence[str] = ()
    cards: Sequence[tuple[str, str]] = ()
    notes: Sequence[Block] = ()
    sections: Sequence[Section] = field(default_factory=tuple)


def text(sentence: str, look: Literal["", "soft", "problem"] = "") -> Paragraph:
    """A paragraph of one text."""
    return Paragraph([sentence], look)

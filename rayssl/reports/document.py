"""Renders a page: one HTML file with styles, pictures and its script inside, which asks nobody for anything."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from rayssl.reports.content import Page

_BREAKS = re.compile(
    r"(?<=[^\s./_,=:-][./_,=:-])(?=[^./_,=:\s-])"
)  # where a long key or URI may go on in the next line


def document(page: Page) -> str:
    """The page as HTML text. All text in ``page`` is escaped; its pictures are elements already."""
    environment = _environment()
    style, script = (_source(environment, name) for name in ("page.css", "page.js"))
    # `Content-Security-Policy` allows this one script, and lets a browser ask nothing from anywhere
    known = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = environment.get_template("page.html")
    return template.render(page=page, style=Markup(style), script=Markup(script), script_hash=known)


@cache
def _environment() -> Environment:
    loader = PackageLoader("rayssl.reports", "templates")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"breakable": _breakable, "element": _element, "compact": _compact}
    return made


def _source(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _breakable(text: object) -> Markup:
    """Escaped ``text`` that may be broken between the parts of a key or a URI, and nowhere else."""
    return Markup("<wbr>").join(escape(part) for part in _BREAKS.split(str(text)))


def _element(svg: str) -> Markup:
    """A picture of `rayssl.reports.drawing`: matplotlib has escaped what it says."""
    return Markup(svg)


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))

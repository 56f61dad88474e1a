"""One self-contained HTML document: a template, its data, one script and one style sheet, each admitted by its hash."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def document(name: str, variables: Mapping[str, Any], *, data: Any, scripts: Sequence[str], live: str = "") -> str:
    """Return the whole page that ``page/NAME.html`` describes.

    Args:
        name: Of the template; the data's element bears it too, and the scripts read it there.
        variables: What the template shows. All of it is text: markup in it is escaped.
        data: What the scripts read and the reader may save, as JSON.
        scripts: Files of ``page/`` that make the page's one script, in order.
        live: What the server of a page that follows a run last recorded; such a page asks its server, and nothing else.
    """
    script = (
        '(() => {\n"use strict";\n' + "".join(_asset(file) for file in (*scripts, *(["live.js"] if live else []))) + "})();\n"
    )
    style = _asset("style.css")
    page = Environment(
        loader=PackageLoader("equipoise.pages", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template(f"{name}.html")
    text = page.render(
        **variables,
        name=name,
        live=live,
        data=embed(data),
        script=Markup(script),
        style=Markup(style),
        script_hash=Markup(_hash(script)),
        style_hash=Markup(_hash(style)),
    )
    return text.encode(errors="backslashreplace").decode()  # a name may hold bytes of a path that are no text


def embed(data: Any) -> Markup:
    """Return JSON that may stand inside a ``<script type="application/json">`` element.

    No ``<``, ``>`` or ``&`` survives, so nothing in it can close the element; everything beyond ASCII (U+2028 and U+2029 among
    it) is escaped.
    """
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)


def finite(data: Any) -> Any:
    """Return JSON data with every number that is not finite replaced by None, which JSON can say."""
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _asset(name: str) -> str:
    """Read one of the page's own files."""
    return (files("equipoise.pages") / "page" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return the CSP source expression that admits exactly `text`."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

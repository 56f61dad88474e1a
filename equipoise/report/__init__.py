"""A study as one HTML page: records in, one self-contained file out.

The page needs no network and no server. Its strict Content-Security-Policy admits exactly one script and one style sheet, by
hash; names and reasons that come from a model are text everywhere and markup nowhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from equipoise.report.view import client_data, finite, page_data

__all__ = ["finite", "render"]

_SCRIPTS = ("model.js", "chart.js", "panel.js", "page.js")


def render(study: Mapping[str, Any]) -> str:
    """Return the HTML page of a study's summary.

    Args:
        study: What `summary.summarize` returns: header, evaluations in order, baseline, knee and pick keys, layers, progress.
    Raises:
        InputError: The summary is of another schema.
    """
    script = '(() => {\n"use strict";\n' + "".join(_asset(name) for name in _SCRIPTS) + "})();\n"
    style = _asset("style.css")
    page = Environment(
        loader=PackageLoader("equipoise.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("page.html")
    return page.render(
        **page_data(study),
        data=embed(client_data(study)),
        script=Markup(script),
        style=Markup(style),
        script_hash=Markup(_hash(script)),
        style_hash=Markup(_hash(style)),
    )


def embed(data: Any) -> Markup:
    """Return JSON that may stand inside a ``<script type="application/json">`` element.

    No ``<``, ``>`` or ``&`` survives, so nothing in it can close the element; everything beyond ASCII (U+2028 and U+2029 among
    it) is escaped.
    """
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)


def _asset(name: str) -> str:
    """Read one of the page's own files."""
    return (files("equipoise.report") / "page" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return the CSP source expression that admits exactly `text`."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

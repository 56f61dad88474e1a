"""What was found, as one HTML page each: records in, one self-contained file out.

A page needs no network and no server. Its strict Content-Security-Policy admits exactly one script and one style sheet, by
hash; names and reasons that come from a model are text everywhere and markup nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from equipoise.pages.document import document, embed, finite
from equipoise.pages.scale import render_scale
from equipoise.pages.train import render_train
from equipoise.pages.view import client_data, evaluations_of, page_data

__all__ = ["embed", "finite", "render", "render_scale", "render_train", "waiting"]

_SCRIPTS = ("element.js", "table.js", "tip.js", "model.js", "chart.js", "panel.js", "page.js")


def render(study: Mapping[str, Any], *, live: str = "") -> str:
    """Return the HTML page of a study's summary.

    Args:
        study: What `summary.summarize` returns: header, evaluations in order, baseline, knee and pick keys, layers, progress.
        live: As of `document`.
    Raises:
        InputError: The summary is of another schema.
    """
    evaluations = evaluations_of(study)
    variables, data = page_data(study, evaluations), client_data(study, evaluations)
    return document("study", variables, data=data, scripts=_SCRIPTS, live=live)


def waiting(place: str, *, live: str) -> str:
    """Return the page of a study that has nothing to show yet."""
    return document("waiting", {"place": place}, data=None, scripts=(), live=live)

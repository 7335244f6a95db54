"""Lists of names and suggestions, as the messages of errors have them."""

from __future__ import annotations

import difflib
import html
from collections.abc import Iterable
from typing import Any

__all__ = ["did_you_mean", "facts_html", "join_names"]


def join_names(names: Iterable[Any], limit: int = 5) -> str:
    """Join names for a message; beyond `limit` only their number is given."""
    names = [str(name) for name in names]
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")


def did_you_mean(value: Any, options: Iterable[Any]) -> str:
    """Return `'; did you mean "…"?'` for the option nearest to `value`, or what there is."""
    options = [str(option) for option in options]
    lowered = {option.casefold(): option for option in reversed(options)}
    near = difflib.get_close_matches(str(value).casefold(), list(lowered), n=1, cutoff=0.6)
    if near:
        return f'; did you mean "{lowered[near[0]]}"?'
    return f"; there are: {join_names(options, 8)}" if options else ""


def facts_html(title: str, facts: Iterable[tuple[str, str]]) -> str:
    """A title and names with values as a small HTML table, their text escaped."""
    rows = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
        f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
        for name, value in facts
    )
    return f"<div><strong>{html.escape(title)}</strong><table>{rows}</table></div>"

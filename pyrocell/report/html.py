"""The report as one page that opens from a disk, without a network.

Tables are DataTables (from itables), figures are Vega-Lite's (from altair, its JavaScript from
vl-convert); their code, the data and the text are all in the file. Data are JSON, compressed, and
enter the page as text, never as HTML.
"""

from __future__ import annotations

import base64
import json
import zlib
from functools import cache
from importlib.resources import files
from typing import Any, cast

import itables
import vl_convert
from jinja2 import Environment, select_autoescape

from pyrocell.report.charts import specifications

__all__ = ["render"]


def render(content: dict[str, Any]) -> str:
    """The page, of what :func:`pyrocell.report.content.content` gives."""
    data = json.dumps({"content": content, "charts": specifications()}, separators=(",", ":"))
    page = Environment(autoescape=select_autoescape(default=True, default_for_string=True))
    template = page.from_string(_asset("report.html.jinja"))
    return template.render(
        title=content["title"],
        overall=content["overall"],
        css=_asset("report.css"),
        script=_asset("report.js"),
        tables_css=_table_file("dt_bundle.css"),
        tables=base64.b64encode(_table_file("dt_bundle.js").encode()).decode(),
        charts=_charts(),
        data=base64.b64encode(zlib.compress(data.encode(), 9)).decode(),
    )


def _asset(name: str) -> str:
    return (files("pyrocell.report") / "assets" / name).read_text(encoding="utf-8")


def _table_file(name: str) -> str:
    return (files(itables) / "html" / name).read_text(encoding="utf-8")


@cache
def _charts() -> str:
    """Vega's JavaScript, in a form that a script element can hold."""
    code: str = cast("Any", vl_convert).javascript_bundle()
    return base64.b64encode(code.encode()).decode()

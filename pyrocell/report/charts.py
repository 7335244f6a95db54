"""Figures of the page as Vega-Lite specifications; their rows are put in by the page."""

from __future__ import annotations

from typing import Any

import altair as alt

__all__ = ["specifications"]

_UP, _DOWN, _NONE, _OWN = "#D55E00", "#0072B2", "#9aa0a6", "#000000"  # Okabe and Ito
_DIVERGING = "blueorange"
_STATES = alt.Scale(
    domain=["up", "down", "not listed", "own gene"], range=[_UP, _DOWN, _NONE, _OWN]
)
_LFC = "log2 fold change against control"


def specifications() -> dict[str, dict[str, Any]]:
    """Volcano, intervals, time course, response, heat map, similarity, training, by name."""
    charts = {
        "volcano": _volcano(),
        "intervals": _intervals(),
        "course": _course(),
        "gains": _gains(),
        "heat": _heat("gene", "log2 fold change"),
        "similarity": _heat("other", "correlation"),
        "training": _training(),
    }
    named = {}
    for name, chart in charts.items():
        spec = chart.to_dict()
        spec.pop("$schema", None)  # an address on the network, which nothing needs
        named[name] = spec
    return named


def _rows() -> alt.NamedData:
    return alt.NamedData(name="rows")


def _tips(*names: str) -> list[alt.Tooltip]:
    return [
        alt.Tooltip(f"{n}:Q", format=".3g") if n in _NUMBERS else alt.Tooltip(f"{n}:N")
        for n in names
    ]


_NUMBERS = ("log2fc", "lower", "upper", "lfsr", "fdr", "gain", "value", "time", "nats")


def _volcano() -> alt.Chart:
    return (
        alt.Chart(_rows())
        .mark_circle(opacity=0.75)
        .encode(
            x=alt.X("log2fc:Q", title=_LFC),
            y=alt.Y("sure:Q", title="−log10 of the local false sign rate"),
            color=alt.Color("state:N", scale=_STATES, title=None, legend=alt.Legend(orient="top")),
            size=alt.condition("datum.state == 'not listed'", alt.value(22), alt.value(60)),
            tooltip=_tips("gene", "log2fc", "lower", "upper", "lfsr", "fdr"),
        )
        .properties(width="container", height=300)
    )


def _intervals() -> alt.TopLevelMixin:
    base = alt.Chart(_rows()).encode(
        y=alt.Y("gene:N", sort=None, title=None),
        color=alt.Color("state:N", scale=_STATES, legend=None),
        tooltip=_tips("gene", "log2fc", "lower", "upper", "lfsr", "fdr"),
    )
    zero = alt.Chart().mark_rule(color="#666", strokeDash=[4, 3]).encode(x=alt.datum(0))
    bars = base.mark_rule(size=2).encode(x=alt.X("lower:Q", title=f"{_LFC}, 90%"), x2="upper:Q")
    dots = base.mark_point(filled=True, size=50).encode(x="log2fc:Q")
    return alt.layer(bars, dots, zero, data=_rows()).properties(
        width="container", height=alt.Step(14)
    )


def _course() -> alt.TopLevelMixin:
    base = alt.Chart(_rows()).encode(
        x=alt.X("time:Q", title="time"),
        color=alt.Color(
            "gene:N", title=None, legend=alt.Legend(orient="top", columns=4, symbolOpacity=1)
        ),
        tooltip=_tips("gene", "time", "log2fc", "lower", "upper"),
    )
    band = base.mark_area(opacity=0.15).encode(y=alt.Y("lower:Q", title=_LFC), y2="upper:Q")
    line = base.mark_line(point=True).encode(y="log2fc:Q")
    return alt.layer(band, line, data=_rows()).properties(width="container", height=260)


def _gains() -> alt.TopLevelMixin:
    base = alt.Chart(_rows()).encode(
        y=alt.Y("perturbation:N", sort=None, title=None),
        color=alt.condition(
            "datum.response == 'blocked' || datum.response == 'weakened'",
            alt.value(_UP),
            alt.value(_DOWN),
        ),
        tooltip=_tips("perturbation", "medium", "gain", "lower", "upper", "response"),
    )
    one = alt.Chart().mark_rule(color="#666", strokeDash=[4, 3]).encode(x=alt.datum(1))
    title = "share of the response that is left (0 blocked, 1 as control), 90%"
    bars = base.mark_rule(size=2).encode(x=alt.X("lower:Q", title=title), x2="upper:Q")
    dots = base.mark_point(filled=True, size=50).encode(x="gain:Q")
    return alt.layer(bars, dots, one, data=_rows()).properties(
        width="container", height=alt.Step(14)
    )


def _heat(across: str, title: str) -> alt.Chart:
    return (
        alt.Chart(_rows())
        .mark_rect()
        .encode(
            x=alt.X(
                f"{across}:N", sort=None, title=None,
                axis=alt.Axis(labelOverlap=True, labelAngle=-90),
            ),
            y=alt.Y(
                "perturbation:N", sort=None, title=None,
                axis=alt.Axis(labelOverlap=True),
            ),
            color=alt.Color(
                "value:Q", title=title, scale=alt.Scale(scheme=_DIVERGING, domainMid=0),
                legend=alt.Legend(orient="top"),
            ),
            stroke=alt.condition("datum.own", alt.value("#000"), alt.value(None)),
            tooltip=_tips("perturbation", across, "value"),
        )
        .properties(width="container", height=alt.Step(13))
    )  # fmt: skip


def _training() -> alt.Chart:
    return (
        alt.Chart(_rows())
        .mark_line(point=True)
        .encode(
            x=alt.X("epoch:Q", title="epoch"),
            y=alt.Y("nats:Q", title="ELBO, nats per cell", scale=alt.Scale(zero=False)),
            color=alt.Color("cells:N", title=None, legend=alt.Legend(orient="top")),
            tooltip=_tips("epoch", "nats", "cells"),
        )
        .properties(width="container", height=220)
    )

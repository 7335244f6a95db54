"""Screens that come with the package, each with its provenance in ``.uns["source"]``."""

from __future__ import annotations

from pyrocell.datasets._hipsc import hipsc_timecourse

__all__ = ["hipsc_timecourse"]

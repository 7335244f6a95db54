"""The directory that a fit leaves behind: model, tables, annotated cells, figures, a summary."""

from __future__ import annotations

from pyrocell.report.quality import Convergence, convergence
from pyrocell.report.writing import Report, check_target, write

__all__ = ["Convergence", "Report", "check_target", "convergence", "write"]

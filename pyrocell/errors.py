"""Exceptions and warnings: each names the column or site, the value, and the remedy."""

from __future__ import annotations

import sys
import warnings

__all__ = [
    "ConflictingTypesError",
    "CountError",
    "DesignError",
    "DiskError",
    "KnowledgeError",
    "ModelFileError",
    "NonFiniteError",
    "ProcessError",
    "ProtocolError",
    "PyrocellError",
    "ScreenError",
    "ScreenWarning",
    "StiffFieldError",
    "UnknownLabelError",
    "warn",
]


class PyrocellError(Exception):
    """Base of every error that pyrocell raises on purpose."""


class ScreenError(PyrocellError, ValueError):
    """The annotation of a screen cannot be used as it is."""


class CountError(ScreenError):
    """The count matrix does not hold raw counts."""


class UnknownLabelError(ScreenError):
    """A perturbation, medium, time, batch or column that the screen does not have."""


class ProtocolError(PyrocellError, ValueError):
    """A protocol that cannot be carried out."""


class ConflictingTypesError(ProtocolError):
    """One gene is given two perturbation types in the same cell (paper, below eq. 1)."""


class DesignError(PyrocellError, ValueError):
    """A plan that no layout can meet, or a layout or noise level that makes no sense."""


class KnowledgeError(PyrocellError, ValueError):
    """Prior knowledge that cannot be read, or that knows none of the genes asked for."""


class NonFiniteError(PyrocellError, FloatingPointError):
    """A value became NaN or infinite during training.

    Parameters
    ----------
    message
        What happened and what to do.
    site
        Name of the Pyro site or parameter where it was first seen.
    """

    def __init__(self, message: str, site: str = "") -> None:
        super().__init__(message)
        self.site = site


class StiffFieldError(PyrocellError, FloatingPointError):
    """The field of a neural ODE ran away, or was too fast for its steps."""


class ProcessError(PyrocellError, RuntimeError):
    """A process of a training over several died, or could not be started."""


class ModelFileError(PyrocellError, ValueError):
    """A saved model that cannot be read, is damaged, or belongs to another configuration."""


class DiskError(PyrocellError, OSError):
    """An answer that cannot be written where it was asked to be."""


class ScreenWarning(UserWarning):
    """The screen can be fitted, but part of the answer will not mean what one may expect."""


def warn(message: str) -> None:
    """Give a `ScreenWarning` at the user's own line: that of the first caller outside pyrocell."""
    frame, level = sys._getframe(1), 2
    while frame and frame.f_globals.get("__name__", "").startswith("pyrocell."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, ScreenWarning, stacklevel=level)

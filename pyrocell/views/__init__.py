"""V: what a measurement makes of the hidden state, one file per modality."""

from __future__ import annotations

from pyrocell.views import rna

__all__ = ["rna"]

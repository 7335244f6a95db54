"""The change of a condition taken apart: which step of the experiment moves which gene by how much.

`terms` holds what is added up, draw by draw; `conditions` reads what is asked and against what it
is compared; `tables` summarises by gene and by step, with the cells behind each; `sentences` says
the numbers of these tables in words.
"""

from __future__ import annotations

from pyrocell.posterior.explain.answer import Request, explain
from pyrocell.posterior.explain.sentences import sentences

__all__ = ["Request", "explain", "sentences"]

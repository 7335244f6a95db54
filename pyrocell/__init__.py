"""A generative model of pooled CRISPR screens with a single-cell readout.

Cells are perturbed (P), their medium is changed (M), they wait (W) and are measured in batches
(V, with batch noise eta). pyrocell fits all of it to raw counts and answers with posteriors.
"""

from __future__ import annotations

from importlib.metadata import version

__version__ = version("pyrocell")

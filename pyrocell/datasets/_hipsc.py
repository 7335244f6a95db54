"""The hiPSC knockout time course of Ishikawa et al. (2023)."""

from __future__ import annotations

from importlib.resources import files

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

__all__ = ["hipsc_timecourse"]

_FILE = "hipsc_timecourse.npz"

_SOURCE = {
    "citation": (
        "Ishikawa M. et al. RENGE infers gene regulatory networks using time-series single-cell "
        "RNA-seq data with CRISPR perturbations. Communications Biology 6, 1290 (2023). "
        "doi:10.1038/s42003-023-05594-4"
    ),
    "accession": "GEO GSE213069; BioProject PRJNA879051",
    "license": "MIT, (c) 2022 masastat; notice in pyrocell/datasets/hipsc_timecourse.LICENSE",
    "path": (
        "PyPI sdist renge 0.0.5, examples/data/E_renge_d2_80.csv and X_renge_d2_80.csv "
        "(also in github.com/masastat/RENGE)"
    ),
    "processing": (
        "counts = rint(expm1(E)), where expm1(E) is integer to 5e-13; perturbation from the "
        "one-hot rows of X, a row without a 1 being a control; time = last column of X; batch "
        "from the prefix of the cell barcode. Written by scripts/build_hipsc_timecourse.py."
    ),
    "caveats": (
        "Counts are sctransform-corrected (depth-equalised) by the authors, not raw UMIs: library "
        "size no longer varies, so size_factor is 1, and counts are under-dispersed: among the "
        "controls of day 3 the median variance is 1.18 times the mean, and 9 genes of 103 are "
        "below Poisson. Only the 103 genes that the authors modelled. One batch per day: drift of "
        "the control with time and batch noise cannot be told apart. One medium; no guide labels."
    ),
}


def hipsc_timecourse() -> ad.AnnData:
    """Human iPSCs, 23 knockouts and control, measured on days 2 to 5.

    14,945 cells by 103 genes: transcription factors and chromatin regulators knocked out in a
    pool and sequenced on four days, one 10x sample a day.

    Returns
    -------
    AnnData
        ``.X`` (14945, 103) CSR, int32 counts.

        ``.obs``: ``perturbation`` (gene, or ``"control"``), ``perturbation_type``
        (``"knockout"``), ``media`` (``"baseline"``), ``time`` in days (2.0 to 5.0), ``batch``
        (``"sample_1"`` to ``"sample_4"``), ``size_factor`` (1.0).

        ``.uns["source"]``: citation, accession, licence, path, processing and caveats.

    Notes
    -----
    What these data cannot show:

    - Counts are depth-corrected by the authors, **not raw UMIs**. Library size does not vary any
      more (pass ``size_factor_key="size_factor"``), and counts are under-dispersed: among the
      controls of day 3 the median variance is 1.18 times the mean, and 9 of 103 genes are below
      Poisson.
    - **Batch and day coincide**, so drift of the control population and batch noise are aliased.
    - One medium, no guide labels, and only the 103 genes that the authors modelled, among them
      all 23 targets.

    Source: Ishikawa M. et al., *Communications Biology* 6, 1290 (2023),
    doi:10.1038/s42003-023-05594-4; GEO GSE213069. Taken from the PyPI sdist ``renge`` 0.0.5 (MIT,
    notice in the package beside the file) by ``scripts/build_hipsc_timecourse.py``.

    Examples
    --------
    >>> import pyrocell
    >>> adata = pyrocell.datasets.hipsc_timecourse()
    >>> adata.shape
    (14945, 103)
    """
    with files("pyrocell.datasets").joinpath(_FILE).open("rb") as stream:
        with np.load(stream, allow_pickle=False) as stored:
            arrays = dict(stored)
    counts = arrays["counts"].T.astype(np.int32)  # (cells, genes)
    sample = arrays["sample"]
    labels = pd.Categorical.from_codes(arrays["perturbation"], arrays["perturbation_names"])
    n_cells = len(counts)
    barcodes = arrays["barcode"].astype(str)
    obs = pd.DataFrame(
        {
            "perturbation": labels,
            "perturbation_type": pd.Categorical(["knockout"] * n_cells),
            "media": pd.Categorical(["baseline"] * n_cells),
            "time": arrays["day"].astype(np.float64),
            "batch": pd.Categorical([f"sample_{s}" for s in sample]),
            "size_factor": np.ones(n_cells),
        },
        index=[f"{s}_{barcode}-1" for s, barcode in zip(sample, barcodes)],
    )
    return ad.AnnData(
        X=sparse.csr_matrix(counts),
        obs=obs,
        var=pd.DataFrame(index=arrays["genes"].astype(str)),
        uns={"source": dict(_SOURCE), "time_units": "days"},
    )

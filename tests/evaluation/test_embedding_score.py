"""Scores of embeddings: what is in them is found, and what is not is at chance."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from pyrocell.errors import ScreenError, UnknownLabelError
from pyrocell.metrics import embedding_score, expression_anchors

GENES = [f"g{i}" for i in range(80)]


@pytest.fixture(scope="module")
def planted() -> pd.DataFrame:
    """Coordinates of 80 genes; those of the first 20 are shifted along one axis."""
    x = np.random.default_rng(0).normal(size=(80, 3))
    x[:20, 0] += 2.5
    return pd.DataFrame(x, index=GENES)


def test_a_planted_set_is_found_and_a_random_one_is_not(planted):
    some = np.random.default_rng(1).choice(GENES, 20, replace=False)
    sets = {"planted": GENES[:20], "random": list(some), "few": GENES[:3], "most": GENES[:60]}
    table = embedding_score(planted, sets, n_shuffles=10).set_index(["gene_set", "classifier"])
    assert set(table.index.get_level_values(0)) == {"planted", "random"}
    assert (table.loc["planted", "auroc"] > 0.85).all()
    assert (table.loc["planted", "p"] < 0.1).all()
    # 20 of 80 at random: standard deviation .075 of an AUROC, and ten times less of a mean
    assert table["shuffled"].to_numpy() == pytest.approx(0.5, abs=0.1)
    assert table.loc["random", "auroc"].to_numpy() == pytest.approx(0.5, abs=0.25)


def test_anchors_stand_beside(planted):
    """A set of genes that differ in expression alone is told by expression, not by coordinates."""
    rng = np.random.default_rng(2)
    mean = np.where(np.arange(80) % 4 == 0, 4.0, 0.5)
    cells = ad.AnnData(sp.csr_matrix(rng.poisson(mean, (60, 80))), var=pd.DataFrame(index=GENES))
    found = embedding_score(planted, {"high": GENES[::4]}, cells, n_shuffles=2)
    by = found[found["classifier"] == "logistic regression"].set_index("embedding")["auroc"]
    assert list(by.index) == ["embeddings", "log mean expression", "PCA of controls"]
    assert by["log mean expression"] > 0.95 > by["embeddings"]
    anchors = expression_anchors(cells, 5)
    assert anchors["PCA of controls"].shape == (80, 5)


def test_sets_are_read_from_a_file_and_names_that_fit_nothing_are_refused(planted, tmp_path):
    path = tmp_path / "sets.gmt"
    path.write_text("planted\tx\t" + "\t".join(GENES[:20]) + "\n", encoding="utf-8")
    found = embedding_score(planted, path, n_shuffles=1, classifiers=["nearest neighbours"])
    assert list(found["n_genes"]) == [20]
    with pytest.raises(ScreenError, match="no gene set has 10 or more members"):
        embedding_score(planted, {"a": ["TP53"]})
    with pytest.raises(UnknownLabelError, match='did you mean "nearest neighbours"'):
        embedding_score(planted, {"a": GENES[:20]}, classifiers=["nearest neighbors"])

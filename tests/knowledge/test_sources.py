"""Prior knowledge becomes kernels: files, graphs, vectors and tables; names; what is refused."""

from __future__ import annotations

import gzip

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyrocell
from pyrocell.errors import KnowledgeError, ScreenWarning
from pyrocell.knowledge import Knowledge, read_gmt

SETS = {"interferon": ["IFNGR1", "IFNGR2", "JAK2", "STAT1"], "kinases": ["JAK2", "LCK", "ZAP70"]}
EDGES = pd.DataFrame({"a": ["IFNGR1", "JAK2", "LCK"], "b": ["JAK2", "STAT1", "ZAP70"]})


def every_kind() -> Knowledge:
    rng = np.random.default_rng(0)
    names = ["STAT1", "JAK2", "LCK"]
    vectors = pd.DataFrame(rng.normal(size=(3, 4)), index=names)
    products = pd.DataFrame(vectors @ vectors.T, index=names).set_axis(names, axis=1)
    return (
        Knowledge.from_gene_sets(SETS)
        + Knowledge.from_edges(EDGES, source="a", target="b")
        + Knowledge.from_embedding(vectors)
        + Knowledge.from_kernel(products)
    )


def test_kernels_have_a_unit_diagonal_and_a_gene_unknown_is_like_no_other():
    knowledge = every_kind()
    assert knowledge.sources == ("gene sets", "edges", "embedding", "kernel")
    kernels, covered = knowledge.kernel(["STAT1", "GENE9", "JAK2", "LCK"])
    assert kernels.shape == (4, 4, 4) and covered.shape == (4, 4)
    assert np.allclose(np.diagonal(kernels, axis1=1, axis2=2), 1)
    assert not covered[:, 1].any() and (kernels[:, 1, [0, 2, 3]] == 0).all()
    assert covered[:, [0, 2, 3]].all()
    for kernel in kernels:
        assert np.allclose(kernel, kernel.T) and np.linalg.eigvalsh(kernel).min() > -1e-9
    assert kernels[0, 0, 2] > kernels[0, 0, 3] == 0  # STAT1 shares a set with JAK2, not with LCK
    assert kernels[1, 0, 2] > 0 and kernels[1, 0, 3] == pytest.approx(0)


def test_genes_of_the_same_sets_are_alike_and_small_sets_say_more():
    sets = {"small": ["A", "B", "x"], "large": ["A", "C", *(f"y{i}" for i in range(200))]}
    kernel = Knowledge.from_gene_sets(sets).kernel(["A", "B", "C", "x"]).kernels[0]
    assert kernel[1, 3] == pytest.approx(1)
    assert kernel[0, 1] > kernel[0, 2] > 0


@given(st.integers(0, 2**31), st.integers(4, 9), st.integers(1, 12))
@settings(max_examples=20)
def test_a_kernel_of_some_genes_is_part_of_that_of_more(seed, n_genes, n_sets):
    rng = np.random.default_rng(seed)
    genes = [f"g{i}" for i in range(n_genes)]
    sets = {
        f"s{j}": list(rng.choice(genes, rng.integers(3, n_genes + 1), False)) for j in range(n_sets)
    }
    knowledge = Knowledge.from_gene_sets(sets)
    whole = knowledge.kernel(genes).kernels[0]
    known = sorted(set().union(*sets.values()))
    some = [g for g in genes if g in known[:3]] or known[:1]
    places = [genes.index(g) for g in some]
    assert np.allclose(knowledge.kernel(some).kernels[0], whole[np.ix_(places, places)])
    assert np.linalg.eigvalsh(whole).min() > -1e-9


def test_files_are_read_plain_packed_and_with_members_in_one_column(tmp_path):
    plain = tmp_path / "plain.gmt"
    plain.write_text("one\thttp://x\tA\tB\tC\ntwo\t\tC\tD\tE\n")
    assert read_gmt(plain) == {"one": ["A", "B", "C"], "two": ["C", "D", "E"]}
    packed = tmp_path / "packed.gmt.gz"
    with gzip.open(packed, "wt") as file:
        file.write("one\tNA\tA,B,C\ntwo\tNA\tC,D,E,F\n")
    assert read_gmt(packed) == {"one": ["A", "B", "C"], "two": ["C", "D", "E", "F"]}
    weighted = tmp_path / "enrichr.gmt"
    weighted.write_text("one\t\tA,1.0\tB,.5\t\n")
    assert read_gmt(weighted) == {"one": ["A", "B"]}
    both = Knowledge.from_gene_sets(plain, packed)
    assert both.sources == ("plain", "packed")
    assert Knowledge.from_gene_sets(plain, plain).sources == ("plain", "plain 2")
    assert "2 sets, 5 genes" in repr(both)
    assert "2 sets, 5 genes" in both._repr_html_()


def test_names_are_found_without_regard_to_case_with_a_word_said():
    knowledge = Knowledge.from_gene_sets({"s": ["Stat1", "Jak2", "Lck"]})
    with pytest.warns(ScreenWarning, match="STAT1"):
        kernels, covered = knowledge.kernel(["STAT1", "Jak2"])
    assert covered.all() and kernels[0, 0, 1] == pytest.approx(1)
    two = Knowledge.from_gene_sets({"s": ["Stat1", "STAT1", "Lck"]})
    assert not two.kernel(["stat1", "Lck"]).covered[0, 0]  # which of the two is meant?


def test_it_is_exported_from_the_package():
    assert pyrocell.Knowledge is Knowledge


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Knowledge.from_gene_sets(), "name a .gmt file"),
        (lambda: Knowledge.from_gene_sets(SETS, names=["a", "b"]), "must be 1"),
        (lambda: Knowledge.from_gene_sets(SETS, min_size=9), "9 to 300 genes"),
        (lambda: Knowledge.from_gene_sets("absent.gmt"), "absent.gmt cannot be read"),
        (lambda: Knowledge.from_edges(EDGES), 'no column "source"'),
        (lambda: Knowledge.from_edges(EDGES.assign(b=EDGES["a"]), "a", "b"), "no edge"),
        (lambda: Knowledge.from_edges(EDGES.assign(w=-1.0), "a", "b", "w"), "above 0"),
        (lambda: Knowledge.from_embedding(pd.DataFrame([[1.0], [1.0]])), "the same"),
        (lambda: Knowledge.from_embedding(pd.DataFrame([[1.0], [np.nan]])), "finite"),
        (lambda: Knowledge.from_embedding(pd.DataFrame([[1.0], [2.0]], index=[0, 0])), "twice"),
        (lambda: Knowledge.from_kernel(pd.DataFrame([[1.0, 2.0], [2.0, 1.0]])), "semidefinite"),
        (lambda: Knowledge.from_kernel(pd.DataFrame([[1.0, 0.5], [0.1, 1.0]])), "symmetric"),
        (lambda: Knowledge.from_kernel(pd.DataFrame(np.eye(2), columns=["a", "b"])), "same names"),
        (lambda: every_kind().kernel(["GENE9"]), "none of 1 genes"),
    ],
)
def test_what_is_no_knowledge_is_refused_by_name(make, words):
    with pytest.raises(KnowledgeError, match=words):
        make()

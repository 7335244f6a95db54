"""Counts in a file: what is read when, and that a model of them is the model of those in memory."""

from __future__ import annotations

import os
import pickle
import threading

import anndata
import h5py
import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from pyrocell import PseudobulkODE, PyroCell, TrainingConfig, read_backed
from pyrocell.data import backed as stored
from pyrocell.data import loader as batches
from pyrocell.data.backed import BackedCounts, count_blocks, gene_totals, prefetch
from pyrocell.data.loader import MinibatchSampler
from pyrocell.data.registration import register
from pyrocell.design.fitted import cell_variance
from pyrocell.errors import CountError, ScreenError, ScreenWarning, UnknownLabelError

zarr = pytest.importorskip("zarr")
pytestmark = [
    pytest.mark.filterwarnings("error::pyrocell.errors.ScreenWarning"),
    pytest.mark.filterwarnings("ignore:Writing zarr v2"),
]
SMALL = {"n_latent": 2, "n_response": 2, "n_hidden": 16}
ORDER = {"shuffle_block": 5, "batch_size": 16}


def written(adata: AnnData, path, kind: str) -> AnnData:
    """The same screen with counts in a file."""
    if kind == "zarr":
        adata.write_zarr(path / "screen.zarr")
        return read_backed(path / "screen.zarr")
    adata.write_h5ad(path / "screen.h5ad")
    if kind == "backed":
        return anndata.read_h5ad(path / "screen.h5ad", backed="r")
    return read_backed(path / "screen.h5ad")


@pytest.fixture(autouse=True)
def small_pools(monkeypatch):
    """Pools of 64 cells, blocks of 50 cells: tiny screens have several of each."""
    monkeypatch.setattr(batches, "_POOL", 64)
    monkeypatch.setattr(stored, "_VALUES", 50 * 12)
    monkeypatch.setattr(stored, "_GAP", 3)


def fit(adata: AnnData, **options) -> PyroCell:
    PyroCell.setup_anndata(adata, media_key="media", size_factor_key="depth")
    model = PyroCell(adata, **SMALL)
    options = {"max_epochs": 3, "progress_bar": False, "seed": 3, "devices": 1} | options
    model.train(config=TrainingConfig(**ORDER), **options)
    return model


# ---------------------------------------------------------------------- the same results
@pytest.mark.parametrize("kind", ["backed", "h5ad", "zarr", "dense"])
def test_training_from_a_file_is_training_in_memory_to_the_last_bit(tiny_adata, tmp_path, kind):
    if kind == "dense":
        tiny_adata.X = tiny_adata.X.toarray()
    on_disk = written(tiny_adata, tmp_path, "zarr" if kind == "dense" else kind)
    there, here = fit(on_disk), fit(tiny_adata)
    assert isinstance(there._cells.counts, BackedCounts)
    pd.testing.assert_frame_equal(there.history, here.history, check_exact=True)
    for name, value in here.module.state_dict().items():
        np.testing.assert_array_equal(value, there.module.state_dict()[name], err_msg=name)


def test_answers_about_cells_in_a_file_are_those_in_memory(tiny_adata, tmp_path):
    on_disk, here = written(tiny_adata, tmp_path, "zarr"), fit(tiny_adata)
    here.save(tmp_path / "model")
    there = PyroCell.load(tmp_path / "model", on_disk)
    for ask in (
        lambda m: m.get_latent_representation(batch_size=32),
        lambda m: m.get_normalized_expression().to_numpy(),
        lambda m: m.get_marginal_ll(n_mc_samples=2).to_numpy(),
        lambda m: m.posterior_predictive_check(3).select_dtypes("number").to_numpy(),
        lambda m: m.assumptions(n_samples=2).select_dtypes("number").to_numpy(),
        lambda m: m.counterfactual(m.adata[:20].to_memory(), n_samples=3).X,
    ):
        np.testing.assert_array_equal(ask(there), ask(here))


def test_what_needs_no_training_reads_files_too(make_screen, tmp_path):
    adata = make_screen(times=(1.0, 2.0))
    on_disk, answers = written(adata, tmp_path, "h5ad"), []
    for cells in (on_disk, adata):
        PyroCell.setup_anndata(cells, time_key="time")
        model = PyroCell(cells, **SMALL)
        steady = model.steady_state_screen(n_draws=20, n_splits=2, min_cells=2)
        ode = PseudobulkODE(cells)
        answers.append((steady.select_dtypes("number"), cell_variance(model), ode.levels))
    for there, here in zip(*answers, strict=True):
        np.testing.assert_array_equal(there, here)


def test_a_stopped_training_from_a_file_goes_on_where_it_was(tiny_adata, tmp_path):
    whole = fit(written(tiny_adata, tmp_path, "zarr"))

    class At(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if (trainer.current_epoch, batch_idx) == (1, 4):
                raise RuntimeError("power cut")

    again = {"checkpoint_dir": tmp_path / "run", "checkpoint_minutes": 0.0}
    with pytest.raises(RuntimeError, match="power cut"):
        fit(read_backed(tmp_path / "screen.zarr"), callbacks=At(), **again)
    resumed = fit(read_backed(tmp_path / "screen.zarr"), **again)
    pd.testing.assert_frame_equal(resumed.history, whole.history, check_exact=True)


# ---------------------------------------------------------------------- what is read
def test_registration_reads_columns_and_not_counts(tiny_adata, tmp_path, monkeypatch):
    tiny_adata.write_zarr(tmp_path / "screen.zarr")

    def touched(*_):
        raise AssertionError("counts were read")

    monkeypatch.setattr(stored.BackedCounts, "_read", touched)
    kind = type(read_backed(tmp_path / "screen.zarr").X)
    monkeypatch.setattr(kind, "__getitem__", touched)
    monkeypatch.setattr(kind, "to_memory", touched)
    adata = read_backed(tmp_path / "screen.zarr")
    monkeypatch.setattr(zarr.Array, "__getitem__", touched)
    register(None, adata, media_key="media")
    PyroCell.setup_anndata(adata, media_key="media")
    with pytest.raises(AssertionError, match="counts were read"):
        PyroCell(adata, **SMALL)


def test_a_model_is_built_from_one_pass_over_the_counts(tiny_adata, tmp_path, monkeypatch):
    on_disk, read = written(tiny_adata, tmp_path, "zarr"), []
    one = BackedCounts._read
    monkeypatch.setattr(
        BackedCounts, "_read", lambda self, a, b: read.extend(range(a, b)) or one(self, a, b)
    )
    PyroCell.setup_anndata(on_disk, media_key="media")
    PyroCell(on_disk, **SMALL)
    assert read == list(range(120))


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
@pytest.mark.parametrize(
    "rows",
    [slice(10, 90), np.arange(120) % 7 == 0, np.array([5, 2, 2, 119, 60]), np.array([], int)],
    ids=["slice", "mask", "positions", "none"],
)
def test_rows_of_a_file_are_those_of_the_matrix(tiny_adata, tmp_path, kind, rows):
    counts = BackedCounts(written(tiny_adata, tmp_path, kind).X)
    found = counts[rows]
    assert found.dtype == np.float32 and found.has_canonical_format
    np.testing.assert_array_equal(found.toarray(), tiny_adata.X[rows].toarray())
    np.testing.assert_array_equal(gene_totals(counts), tiny_adata.X.toarray().sum(0))
    assert max(block.shape[0] for _, block in count_blocks(counts)) <= 50


@pytest.mark.parametrize("kind", ["backed", "zarr"])
def test_another_process_reads_the_file_by_itself(tiny_adata, tmp_path, kind):
    counts = BackedCounts(written(tiny_adata, tmp_path, kind).X)
    copy = pickle.loads(pickle.dumps(counts))
    expected = tiny_adata.X[7:20].toarray()
    np.testing.assert_array_equal(copy[7:20].toarray(), expected)
    child = os.fork()
    if not child:
        os._exit(0 if np.array_equal(counts[7:20].toarray(), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_one_item_is_read_ahead_and_never_more():
    read, done = [], threading.Event()

    def take(i):
        read.append(i)
        if i == 3:
            done.set()
        return i

    ahead = prefetch(take, range(10))
    assert [next(ahead) for _ in range(3)] == [(i, i) for i in range(3)]
    assert done.wait(10) and read == [0, 1, 2, 3]
    ahead.close()
    with pytest.raises(ZeroDivisionError):  # what a thread raises is raised here
        list(prefetch(lambda i: 1 / i, [1, 0]))


# ---------------------------------------------------------------------- the order
def test_blocks_are_read_whole_and_mixed_within_pools():
    order = MinibatchSampler(np.arange(1000), 16, seed=1, drop_last=True, block=10)
    pools = list(order.pools())
    seen = np.concatenate([np.concatenate(pool) for pool in pools])
    assert len(seen) == len(np.unique(seen)) == 16 * len(order) == 992
    assert [len(pool) for pool in pools[:-1]] == [4] * 15  # 64 cells each
    for pool in pools:
        runs = np.count_nonzero(np.diff(np.sort(np.concatenate(pool))) > 1) + 1
        assert runs <= 9
        assert all(np.unique(batch // 10).size >= 5 for batch in pool)


def test_every_cell_meets_every_other_in_the_long_run():
    order, together = MinibatchSampler(np.arange(200), 8, 0, drop_last=True, block=4), np.zeros(200)
    for _ in range(300):
        for batch in order:
            if 100 in batch:
                together[batch] += 1
    assert (together[np.arange(200) != 100] > 0).all()


def test_runs_of_no_cells_are_refused(tiny_adata):
    PyroCell.setup_anndata(tiny_adata, media_key="media")
    with pytest.raises(ScreenError, match="shuffle_block=0 must be at least 1"):
        PyroCell(tiny_adata, **SMALL).train(1, config=TrainingConfig(shuffle_block=0))


def test_processes_share_the_minibatches_of_one():
    one = MinibatchSampler(np.arange(1000), 16, 1, True, block=10)
    two = [
        MinibatchSampler(np.arange(1000), 8, 1, True, block=10, rank=r, processes=2)
        for r in range(2)
    ]
    together = [np.sort(np.concatenate(parts)) for parts in zip(*two, strict=True)]
    np.testing.assert_equal(together, list(one))


def test_a_screen_of_one_pool_is_shuffled_as_in_memory():
    blocked, plain = (MinibatchSampler(np.arange(64), 16, 5, True, block=b) for b in (8, 1))
    np.testing.assert_equal(list(blocked), list(plain))


def test_the_order_by_blocks_is_a_function_of_seed_and_epoch():
    straight, resumed = (MinibatchSampler(np.arange(300), 16, 3, True, block=7) for _ in range(2))
    epochs = [list(straight) for _ in range(4)]
    resumed.skip(2, 5)
    np.testing.assert_equal(list(resumed), epochs[2][5:])
    np.testing.assert_equal(list(resumed), epochs[3])
    assert not np.array_equal(epochs[0][0], epochs[1][0])


# ---------------------------------------------------------------------- what is wrong, by name
def test_counts_stored_by_genes_are_refused_with_a_remedy(tiny_adata, tmp_path):
    tiny_adata.X = tiny_adata.X.tocsc()
    with pytest.raises(CountError, match=r"adata.X is stored by genes \(CSC\).*write it as CSR"):
        register(None, written(tiny_adata, tmp_path, "zarr"))


def test_values_that_are_not_counts_are_named_when_they_are_read(tiny_adata, tmp_path):
    tiny_adata.X = tiny_adata.X.astype(float)
    tiny_adata.X[101, 3] = 1.5
    on_disk = written(tiny_adata, tmp_path, "h5ad")
    PyroCell.setup_anndata(on_disk, media_key="media")
    with pytest.raises(CountError, match='not whole numbers.*1.5 in cell "cell101", gene "gene0"'):
        PyroCell(on_disk, **SMALL)


@pytest.mark.filterwarnings("default::pyrocell.errors.ScreenWarning")
def test_empty_cells_and_silent_genes_are_told_as_in_memory(tiny_adata, tmp_path):
    dense = tiny_adata.X.toarray()
    dense[:, 4] = 0
    tiny_adata.X = sp.csr_matrix(dense)
    on_disk = written(tiny_adata, tmp_path, "zarr")
    PyroCell.setup_anndata(on_disk, media_key="media")
    with pytest.warns(ScreenWarning, match=r"1 of 12 genes have no counts .*gene1"):
        PyroCell(on_disk, **SMALL)
    dense[7] = 0
    on_disk.X = None
    tiny_adata.X = sp.csr_matrix(dense)
    (tmp_path / "empty").mkdir()
    on_disk = written(tiny_adata, tmp_path / "empty", "zarr")
    PyroCell.setup_anndata(on_disk, media_key="media")
    with pytest.raises(CountError, match=r"1 of 120 cells have no counts .*cell7"):
        PyroCell(on_disk, **SMALL)


def test_a_layer_of_a_file_is_read_there(tiny_adata, tmp_path):
    tiny_adata.layers["counts"] = tiny_adata.X.copy()
    tiny_adata.X = tiny_adata.X.astype(np.float32) * 0.5
    on_disk = written(tiny_adata, tmp_path, "zarr")
    PyroCell.setup_anndata(on_disk, layer="counts", media_key="media")
    counts = PyroCell(on_disk, **SMALL)._cells.counts
    np.testing.assert_array_equal(counts[:].toarray(), tiny_adata.layers["counts"].toarray())


def test_a_file_that_was_closed_is_named(tiny_adata, tmp_path):
    on_disk = written(tiny_adata, tmp_path, "backed")
    counts = BackedCounts(on_disk.X)
    on_disk.file.close()
    with pytest.raises(CountError, match="cells 3 to 9 of adata.X could not be read.*stay open"):
        counts[3:10]


def test_what_is_no_file_of_anndata_is_named(tmp_path):
    with pytest.raises(UnknownLabelError, match='there is no file ".*missing.zarr"'):
        read_backed(tmp_path / "missing.zarr")
    zarr.open_group(tmp_path / "other.zarr", mode="w")
    with pytest.raises(UnknownLabelError, match="has no obs, var: it was not written by anndata"):
        read_backed(tmp_path / "other.zarr")


# ---------------------------------------------------------------------- damaged files
def changed(path, name: str, index: int, value: int) -> AnnData:
    with h5py.File(path / "screen.h5ad", "r+") as file:
        file[name][index] = value
    return read_backed(path / "screen.h5ad")


@pytest.mark.parametrize(
    ("name", "value"),
    [("indices", 2**31 - 1), ("indices", -1), ("indptr", 10**6), ("indptr", -1)],
)
def test_indices_that_point_outside_are_refused_and_never_followed(
    tiny_adata, tmp_path, name, value
):
    written(tiny_adata, tmp_path, "h5ad")
    cells = changed(tmp_path, f"X/{name}", 3, value)
    PyroCell.setup_anndata(cells, media_key="media")
    with pytest.raises(CountError, match="adata.X is a damaged matrix.*read it again"):
        PyroCell(cells, **SMALL)


def test_a_file_that_is_cut_is_named(tiny_adata, tmp_path):
    written(tiny_adata, tmp_path, "h5ad")
    path = tmp_path / "screen.h5ad"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ScreenError, match='screen.h5ad" cannot be read'):
        read_backed(path)


@pytest.mark.parametrize("array", ["data", "indices"])
def test_counts_that_a_zarr_store_has_lost_are_no_zeros(tiny_adata, tmp_path, array):
    written(tiny_adata, tmp_path, "zarr")
    (tmp_path / "screen.zarr" / "X" / array / "0").unlink()
    with pytest.raises(CountError, match=rf"lacks chunks of its counts.*X/{array} \(1 of 1\)"):
        read_backed(tmp_path / "screen.zarr")


def test_chunks_of_zeros_that_were_not_written_are_a_word_and_no_error(tiny_adata, tmp_path):
    tiny_adata.X = tiny_adata.X.toarray()
    tiny_adata.X[:64] = 0
    tiny_adata.write_zarr(tmp_path / "screen.zarr", chunks=(64, 12))
    with pytest.warns(ScreenWarning, match=r"lacks chunks of X \(1 of 2\).*read as zeros"):
        cells = read_backed(tmp_path / "screen.zarr")
    assert (cells.X[:64] == 0).all() and (cells.X[64:] > 0).any()

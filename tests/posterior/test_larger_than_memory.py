"""Answers larger than memory: the same numbers, in bounded memory, whole on disk or not at all."""

from __future__ import annotations

import errno
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st

from pyrocell.errors import DiskError, ScreenError
from pyrocell.posterior import fitted_screen
from pyrocell.posterior import predictive_check as criticism
from pyrocell.posterior import simulate_cells as simulated
from pyrocell.posterior import summaries as streaming
from pyrocell.posterior import zarr_store as on_disk
from pyrocell.posterior.draws import summarise
from pyrocell.posterior.effects import effect_draws
from pyrocell.posterior.streaming_quantiles import RunningSummary, bytes_per_number, memory_bytes

N = 12


@pytest.fixture
def narrow(monkeypatch) -> str:
    """Two rows at a time, and a budget for two of them: every answer takes several passes."""
    monkeypatch.setattr(fitted_screen, "_PART", 24)
    monkeypatch.setattr(streaming, "_AT_WORK", 0)
    return str(24 * bytes_per_number(N, 0.9))


# ---------------------------------------------------------------- summaries
@given(
    n=st.integers(1, 60),
    level=st.sampled_from([0.2, 0.5, 0.8, 0.9, 0.95, 0.99]),
    seed=st.integers(0, 2**16),
    step=st.sampled_from([0.0, 0.5]),
)
def test_running_summaries_are_those_of_all_draws(n, level, seed, step):
    draws = np.random.default_rng(seed).normal(size=(n, 3, 2)).astype(np.float32)
    draws = np.round(draws / step) * np.float32(step) if step else draws  # ties and zeros
    running = RunningSummary((3, 2), n, level)
    for draw in draws:
        running.add(draw)
    for name, values in summarise(draws, level).items():
        found = running.summary()[name]
        assert found.shape == values.shape
        np.testing.assert_allclose(found, values, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_draw_that_is_no_number_shows_in_every_summary():
    running = RunningSummary((2,), 3)
    for draw in ([1.0, 1.0], [np.nan, 2.0], [3.0, 3.0]):
        running.add(np.array(draw, np.float32))
    summary = running.summary()
    for name in ("mean", "sd", "lower", "upper"):
        assert np.isnan(summary[name][0]) and np.isfinite(summary[name][1])


@pytest.mark.parametrize(
    "size, expected", [("2 GiB", 2**31), ("500MB", 5e8), (2e9, 2e9), ("1.5 kib", 1536), (7, 7)]
)
def test_sizes_are_read_with_and_without_units(size, expected):
    assert memory_bytes(size) == expected


@pytest.mark.parametrize("size", ["two", "2 gibbles", 0, -1, "", None])
def test_what_is_no_size_is_refused(size):
    with pytest.raises(ScreenError, match="memory_budget=.*is no size"):
        memory_bytes(size)


def test_passes_hold_what_the_budget_allows():
    parts = [slice(i, i + 10) for i in range(0, 100, 10)]
    per_part = 10 * 50 * bytes_per_number(100, 0.9)
    wide = 3 * per_part + streaming._AT_WORK
    assert [len(p) for p in streaming.passes(parts, 50, 100, 0.9, wide)] == [3, 3, 3, 1]
    assert streaming.passes(parts, 50, 100, 0.9, "8 GiB") == [parts]
    with pytest.raises(ScreenError, match='is too small: 100 draws of 50 genes need "129 MiB"'):
        streaming.passes(parts, 50, 100, 0.9, "1 MiB")


# ---------------------------------------------------------------- any budget, one answer
def test_effects_do_not_depend_on_the_budget(fitted, narrow):
    names = [*fitted.screen.perturbations, "+".join(fitted.screen.perturbations[1:])]
    for time in (2.0, 1.5):  # the pair and the time in between were not seen
        once = fitted.perturbation_effects(names, time=time, n_samples=N)
        often = fitted.perturbation_effects(names, time=time, n_samples=N, memory_budget=narrow)
        pd.testing.assert_frame_equal(once, often)
    draws = effect_draws(fitted.fitted, names, "baseline", 1.5, N)
    found = once.pivot(index="perturbation", columns="gene", values="mean")
    expected = pd.DataFrame(draws.mean(0), names, fitted.screen.genes)
    np.testing.assert_allclose(found.loc[names, expected.columns], expected, atol=1e-5)


def test_predictions_do_not_depend_on_the_budget(fitted, narrow):
    frame = requests(fitted)
    once = fitted.predict(frame, n_samples=N)
    often = fitted.predict(frame, n_samples=N, memory_budget=narrow)
    np.testing.assert_array_equal(once.X, often.X)
    for layer in ("lower", "upper", "sd"):
        np.testing.assert_array_equal(once.layers[layer], often.layers[layer])
    draws = fitted.predict(frame, n_samples=N, return_draws=True)
    np.testing.assert_allclose(once.X, draws.mean("draw"), rtol=1e-5)


def requests(model) -> pd.DataFrame:
    """Measured and unseen conditions, in measured and new batches, of few cells and of many."""
    names = [model.screen.control, *model.screen.perturbations]
    frame = pd.DataFrame({"perturbation": names, "media": model.screen.media[0], "time": 1.5})
    return frame.assign(batch=[*model.screen.batches, "new", "new"], n_cells=[5, 50, 500, 5000])


def test_counterfactuals_do_not_depend_on_the_budget(fitted, narrow):
    few = fitted.adata[:5].copy()
    once = fitted.counterfactual(few, n_samples=N)
    often = fitted.counterfactual(few, n_samples=N, memory_budget=narrow)
    np.testing.assert_array_equal(once.layers["upper"], often.layers["upper"])


def test_replicated_cells_come_in_blocks(fitted, monkeypatch):
    whole = fitted.posterior_predictive_check(n_samples=30)
    monkeypatch.setattr(criticism, "_AT_ONCE", 30 * 12)
    blocks = fitted.posterior_predictive_check(n_samples=30)
    np.testing.assert_allclose(whole["observed"], blocks["observed"], rtol=1e-6)
    spread = (whole["upper"] - whole["lower"]).clip(lower=1e-6)  # 99% of 30 draws: all of them
    assert ((whole["expected"] - blocks["expected"]).abs() < spread).all()


# ---------------------------------------------------------------- on disk
def test_effects_on_disk_are_those_in_memory(fitted, narrow, tmp_path):
    table = fitted.perturbation_effects(n_samples=N)
    path = tmp_path / "effects.zarr"
    stored = fitted.perturbation_effects(n_samples=N, path=path, memory_budget=narrow)
    assert stored.sizes == {"perturbation": 3, "gene": 12}
    assert float(stored["time"]) == 2.0 and str(stored["media"].values) == "baseline"
    assert stored.attrs == {"credible_level": 0.9, "n_samples": N}
    read = stored.to_dataframe().reset_index()[table.columns]
    pd.testing.assert_frame_equal(read, table, check_dtype=False, rtol=1e-6)
    assert [p.name for p in tmp_path.iterdir()] == ["effects.zarr"]


def test_predictions_and_their_draws_on_disk_are_those_in_memory(fitted, narrow, tmp_path):
    frame = requests(fitted)
    inside = fitted.predict(frame, n_samples=N)
    stored = fitted.predict(frame, n_samples=N, path=tmp_path / "p.zarr", memory_budget=narrow)
    np.testing.assert_array_equal(stored["mean"], inside.X)
    np.testing.assert_array_equal(stored["upper"], inside.layers["upper"])
    assert list(stored["perturbation"].values) == list(frame["perturbation"])
    draws = fitted.predict(frame, n_samples=N, return_draws=True)
    kept = fitted.predict(frame, n_samples=N, return_draws=True, path=tmp_path / "draws.zarr")
    assert kept.dims == draws.dims
    np.testing.assert_array_equal(kept, draws)


def test_cells_on_disk_are_those_in_memory(fitted, narrow, tmp_path):
    latent = fitted.get_latent_representation(batch_size=50, path=tmp_path / "z.zarr")["latent"]
    np.testing.assert_allclose(latent, fitted.get_latent_representation(), atol=1e-5)
    assert list(latent["cell"].values) == list(fitted.adata.obs_names)
    level = fitted.get_normalized_expression(batch_size=50, path=tmp_path / "x.zarr")["expression"]
    np.testing.assert_allclose(level, fitted.get_normalized_expression(), rtol=1e-4)
    few = fitted.adata[:5].copy()
    stored = fitted.counterfactual(few, n_samples=N, path=tmp_path / "c.zarr")
    inside = fitted.counterfactual(few, n_samples=N)
    np.testing.assert_array_equal(stored["sd"], inside.layers["sd"])


def test_simulated_cells_on_disk_are_those_in_memory(fitted, tmp_path, monkeypatch):
    frame = requests(fitted).drop(columns=["batch", "n_cells"])
    monkeypatch.setattr(simulated, "_AT_ONCE", 4 * 12)  # four cells at a time
    inside = fitted.simulate_cells(frame, n_cells=6, n_samples=3)
    stored = fitted.simulate_cells(frame, n_cells=6, n_samples=3, path=tmp_path / "cells.h5ad")
    assert stored.isbacked and isinstance(stored, AnnData)
    stored = stored.to_memory()
    assert (stored.X != inside.X).nnz == 0 and inside.n_obs == 3 * 4 * 6
    np.testing.assert_array_equal(stored.obsm["X_pyrocell"], inside.obsm["X_pyrocell"])
    assert list(stored.obs["perturbation"]) == list(inside.obs["perturbation"])
    assert (inside.obs.groupby(["draw", "perturbation"]).size() == 6).all()


# ---------------------------------------------------------------- whole or not there
def test_an_answer_that_is_there_is_not_replaced_unasked(fitted, tmp_path):
    path = tmp_path / "effects.zarr"
    first = fitted.perturbation_effects(n_samples=2, path=path)["lower"].values
    with pytest.raises(DiskError, match=r"effects\.zarr is there already; pass overwrite=True"):
        fitted.perturbation_effects(n_samples=N, path=path)
    second = fitted.perturbation_effects(n_samples=N, path=path, overwrite=True)["lower"].values
    assert (first != second).any()
    assert [p.name for p in tmp_path.iterdir()] == ["effects.zarr"]


def test_a_failure_leaves_the_earlier_answer_and_nothing_else(fitted, tmp_path):
    path = tmp_path / "effects.zarr"
    first = fitted.perturbation_effects(n_samples=2, path=path)["mean"].values
    with pytest.raises(ScreenError, match="not in the screen"):
        fitted.perturbation_effects(["nobody"], n_samples=2, path=path, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["effects.zarr"]
    np.testing.assert_array_equal(on_disk.open_store(path)["mean"], first)


def test_a_directory_of_other_files_is_never_replaced(fitted, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "thesis.txt").write_text("years")
    with pytest.raises(DiskError, match="a directory and no zarr store"):
        fitted.perturbation_effects(n_samples=2, path=tmp_path / "results", overwrite=True)
    with pytest.raises(DiskError, match="is no directory; make it first"):
        fitted.perturbation_effects(n_samples=2, path=tmp_path / "nowhere" / "effects.zarr")
    assert (tmp_path / "results" / "thesis.txt").read_text() == "years"


def test_a_disk_too_small_is_told_before_the_work(fitted, tmp_path, monkeypatch):
    monkeypatch.setattr(on_disk.shutil, "disk_usage", lambda path: SimpleNamespace(free=700))
    with pytest.raises(DiskError, match=r"effects\.zarr is too full: .* 1,584 bytes and 700 are"):
        fitted.perturbation_effects(n_samples=2, path=tmp_path / "effects.zarr")


def test_a_disk_that_fills_up_leaves_nothing(tmp_path):
    with pytest.raises(DiskError, match="too full"), on_disk.replaced(tmp_path / "a", False, 0):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- memory
GROWTH = """
import resource, sys
import numpy as np, pandas as pd, scipy.sparse as sp, torch
from anndata import AnnData
from pyrocell import PyroCell

def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

torch.set_num_threads(1)
rng, n_genes = np.random.default_rng(0), 2000
labels = ["control"] * 20 + [f"p{k}" for k in range(400)]
counts = sp.csr_matrix(rng.poisson(0.3, (len(labels), n_genes)).astype(np.float32))
obs = pd.DataFrame({"perturbation": labels}, index=[f"c{i}" for i in range(len(labels))])
adata = AnnData(counts, obs, pd.DataFrame(index=[f"g{g}" for g in range(n_genes)]))
PyroCell.setup_anndata(adata, batch_key=None)
model = PyroCell(adata, n_latent=2, n_response=2, n_hidden=16)
model.perturbation_effects(["p0"], n_samples=2)  # compiles
before = peak()
model.perturbation_effects(n_samples=100, path=sys.argv[1], memory_budget="170 MiB")
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux alone")
def test_memory_grows_by_less_than_the_budget(tmp_path):
    """320 MB of draws, in two passes."""
    command = [sys.executable, "-W", "ignore", "-c", GROWTH, str(tmp_path / "effects.zarr")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 170 * 2**20 < 4 * 100 * 400 * 2000

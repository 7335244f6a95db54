"""Saved models: no code in them, the same answers from them, and no silence about damage."""

from __future__ import annotations

import gc
import json
import pickle
import shutil
import subprocess
import sys
import tracemalloc
import weakref
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from pyrocell import PyroCell, Screen
from pyrocell.data.model_files import content_hash
from pyrocell.errors import ModelFileError, ScreenError, UnknownLabelError

KEPT = Path(__file__).parent / "model_of_0_1"
FILES = {"model.safetensors", "model.json", "history.csv"}


@pytest.fixture(scope="module")
def saved(fitted, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "model"
    fitted.save(path)
    return path


@pytest.fixture
def copied(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture
def cells(fitted):
    """The cells of the fitted model as a stranger hands them over, unregistered."""
    adata = fitted.adata.copy()
    adata.uns = {}
    adata.obs = adata.obs[[c for c in adata.obs if not c.startswith("_scvi")]]
    return adata


def answers(model: PyroCell) -> dict[str, np.ndarray]:
    frame = pd.DataFrame({"perturbation": "control", "media": ["baseline", "medium0"], "time": 1.5})
    return {
        "effects": model.perturbation_effects(n_samples=4)["mean"].to_numpy(),
        "batches": model.batch_effects(n_samples=4)["sd"].to_numpy(),
        "gains": model.media_gains(n_samples=4)["mean"].to_numpy(),
        "latent": model.get_latent_representation(),
        "prediction": model.predict(frame, n_samples=4).X,
        "counterfactual": model.counterfactual(n_samples=2).X,
    }


def test_a_saved_model_gives_identical_answers(fitted, saved, cells):
    loaded = PyroCell.load(saved, cells)
    theirs, ours = answers(loaded), answers(fitted)
    for name, values in ours.items():
        np.testing.assert_array_equal(theirs[name], values, err_msg=name)
    assert loaded.is_trained and loaded.history.shape == fitted.history.shape
    pd.testing.assert_frame_equal(loaded.history, fitted.history)


def test_a_saved_model_gives_identical_answers_in_a_fresh_process(fitted, saved, cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    script = """
import sys, numpy as np, anndata, torch
from pyrocell import PyroCell
torch.rand(3)
model = PyroCell.load(sys.argv[1], anndata.read_h5ad(sys.argv[2]))
effects = model.perturbation_effects(n_samples=4)["mean"].to_numpy()
np.savez(sys.argv[3], effects=effects, latent=model.get_latent_representation())
"""
    out = tmp_path / "answers.npz"
    command = [sys.executable, "-W", "ignore", "-c", script, saved, tmp_path / "cells.h5ad", out]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    theirs, ours = np.load(out), answers(fitted)
    for name in ("effects", "latent"):
        np.testing.assert_array_equal(theirs[name], ours[name], err_msg=name)


def test_a_loaded_model_of_part_of_the_cells_is_the_whole_model(fitted, saved, cells):
    rows = slice(90, 10, -2)
    loaded = PyroCell.load(saved, cells[rows].copy())
    np.testing.assert_allclose(
        loaded.get_latent_representation(), fitted.get_latent_representation()[rows], atol=1e-6
    )
    for name in ("effects", "batches", "gains"):
        np.testing.assert_array_equal(answers(loaded)[name], answers(fitted)[name], err_msg=name)
    assert loaded.screen.conditions.equals(fitted.screen.conditions)
    assert len(loaded.screen.cell_condition) == loaded.adata.n_obs == 40


def test_a_loaded_model_can_be_trained_and_saved_again(saved, cells, tmp_path):
    loaded = PyroCell.load(saved, cells)
    loaded.train(max_epochs=1, progress_bar=False)
    loaded.save(tmp_path / "again")
    again = PyroCell.load(tmp_path / "again", cells)
    for name, values in answers(loaded).items():
        np.testing.assert_array_equal(answers(again)[name], values, err_msg=name)


def test_an_untrained_model_can_be_saved(make_screen, build, tmp_path):
    model = build(make_screen())
    model.save(tmp_path / "model")
    loaded = PyroCell.load(tmp_path / "model", model.adata)
    assert not loaded.is_trained and {p.name for p in (tmp_path / "model").iterdir()} < FILES
    for name, value in loaded.module.state_dict().items():
        assert value.equal(model.module.state_dict()[name]), name


@pytest.mark.parametrize(
    ("setup", "options"),
    [
        ({"size_factor_key": "depth"}, {"likelihood": "nb", "gene_residual": False}),
        (
            {"categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["depth"]},
            {"n_response": 0},
        ),
        ({}, {"dropout": "cell", "content_dependent_noise": True, "interactions": True}),
    ],
    ids=["size factor", "covariates", "other noise"],
)
def test_every_setup_survives_the_file(make_screen, build, tmp_path, setup, options):
    adata = make_screen(combinations=True, balanced=False)
    adata.obs["depth"] = np.asarray(adata.X.sum(1), dtype=float).ravel()
    adata.obs["donor"] = pd.Categorical(np.where(np.arange(adata.n_obs) % 3, "d1", "d2"))
    model = build(adata, setup, **options)
    model.train(max_epochs=1, progress_bar=False)
    model.save(tmp_path / "model")
    part = adata[::2].copy()
    part.uns = {}
    loaded = PyroCell.load(tmp_path / "model", part)
    np.testing.assert_allclose(
        loaded.get_normalized_expression(batch_corrected=False),
        model.get_normalized_expression(batch_corrected=False)[::2],
        rtol=1e-4,
    )


# ---------------------------------------------------------------------- no code in the files


def test_a_saved_model_holds_no_pickle(saved):
    assert {path.name for path in saved.iterdir()} == FILES
    for path in saved.iterdir():
        body = path.read_bytes()
        assert not body.startswith((b"PK", b"\x80")), path.name
        with pytest.raises(Exception):  # noqa: B017
            pickle.loads(body)
    assert all(isinstance(v, torch.Tensor) for v in load_file(saved / "model.safetensors").values())
    json.loads((saved / "model.json").read_text())
    pd.read_csv(saved / "history.csv")


class Malicious:
    """Unpickling this writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_loading_never_unpickles(saved, copied, cells, tmp_path):
    trap = tmp_path / "executed"
    body = pickle.dumps({"model_state_dict": Malicious(trap)})
    for name in ("model.pt", "attr.pkl", "model.pkl"):
        (copied / name).write_bytes(body)
    assert PyroCell.load(copied, cells).is_trained
    for name in FILES:
        shutil.rmtree(copied)
        shutil.copytree(saved, copied)
        (copied / name).write_bytes(body)
        with pytest.raises(ModelFileError):
            PyroCell.load(copied, cells)
    shutil.rmtree(copied)
    copied.mkdir()
    (copied / "model.pt").write_bytes(body)
    with pytest.raises(ModelFileError, match="missing"):
        PyroCell.load(copied, cells)
    assert not trap.exists()


# ---------------------------------------------------------------------- damage


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_a_missing_or_cut_file_is_named(copied, cells, name):
    body = (copied / name).read_bytes()
    (copied / name).write_bytes(body[: len(body) // 2])
    with pytest.raises(ModelFileError, match="damaged"):
        PyroCell.load(copied, cells)
    (copied / name).unlink()
    with pytest.raises(ModelFileError, match=f"{name} is missing"):
        PyroCell.load(copied, cells)


def test_no_model_at_all_is_said(tmp_path, cells):
    with pytest.raises(ModelFileError, match="missing"):
        PyroCell.load(tmp_path / "nowhere", cells)


def test_files_of_two_models_do_not_mix(copied, cells):
    tensors = load_file(copied / "model.safetensors")
    tensors["model.loading"] += 1e-3
    save_file(tensors, copied / "model.safetensors")
    with pytest.raises(ModelFileError, match="does not belong"):
        PyroCell.load(copied, cells)


def edited(path: Path, **changes) -> None:
    settings = json.loads((path / "model.json").read_text())
    (path / "model.json").write_text(json.dumps(settings | changes))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format": 99}, "format 99"),
        ({"config": {"n_latent": 3}}, "changed"),
        ({"trained": False}, "changed"),
        ({"identity": "0"}, "changed"),
    ],
)
def test_changed_settings_are_refused(copied, cells, changes, match):
    edited(copied, **changes)
    with pytest.raises(ModelFileError, match=match):
        PyroCell.load(copied, cells)


def rewritten(path: Path, change) -> None:
    """Settings changed by someone who knows how the hash is made."""
    tensors = load_file(path / "model.safetensors")
    settings = json.loads((path / "model.json").read_text())
    change(settings)
    settings.pop("identity")
    settings["identity"] = content_hash(tensors, settings)
    (path / "model.json").write_text(json.dumps(settings))


def many_cells(settings: dict) -> None:
    settings["screen"]["screen"]["layout"][0] = [10**10, 10**10]
    settings["screen"]["screen"]["conditions"]["n_cells"][0] = 2 * 10**10


def many_axes(settings: dict) -> None:
    settings["config"]["n_latent"] = 10**6


def many_hidden(settings: dict) -> None:
    settings["config"]["n_hidden"] = 10**9


def many_genes(settings: dict) -> None:
    settings["screen"]["screen"]["genes"] += [f"more{i}" for i in range(10**5)]


def half_a_cell(settings: dict) -> None:
    settings["screen"]["screen"]["layout"][0][0] = 0.5


@pytest.mark.parametrize("change", [many_axes, many_hidden, many_genes, half_a_cell])
def test_sizes_that_are_not_those_of_the_tensors_are_refused_before_memory_is_asked_for(
    copied, cells, change
):
    rewritten(copied, change)
    tracemalloc.start()
    with pytest.raises(ModelFileError, match="does not fit this version"):
        PyroCell.load(copied, cells)
    assert tracemalloc.get_traced_memory()[1] < 2**27
    tracemalloc.stop()


def test_a_number_of_cells_takes_no_memory(copied, cells):
    rewritten(copied, many_cells)
    assert PyroCell.load(copied, cells).module.model.n_cells > 10**9


def test_settings_nested_too_deep_are_refused(copied, cells):
    (copied / "model.json").write_text("[" * 10**6 + "]" * 10**6)
    with pytest.raises(ModelFileError, match="is damaged"):
        PyroCell.load(copied, cells)


def test_a_deleted_model_frees_its_screen(make_screen, build):
    model = build(make_screen())
    model.train(max_epochs=1, progress_bar=False)
    model.get_latent_representation(model.adata[:5].copy())
    gone = [weakref.ref(model), weakref.ref(model.adata), weakref.ref(model.module)]
    del model
    gc.collect()
    assert [each() for each in gone] == [None] * 3


@pytest.mark.parametrize("body", ["[1, 2]", "3", "null", ""])
def test_settings_that_are_no_settings_are_refused(copied, cells, body):
    (copied / "model.json").write_text(body)
    with pytest.raises(ModelFileError, match="damaged"):
        PyroCell.load(copied, cells)


def test_a_model_of_another_version_says_so(fitted, saved, cells, tmp_path, monkeypatch):
    """A file that is whole, but whose tensors or settings this version does not have."""
    from pyrocell.data.model_files import read_model, write_model

    state, settings, history = read_model(saved)
    settings.pop("format"), settings.pop("version")
    renamed = {f"{name}_old": value for name, value in state.items()}
    unknown = settings | {"config": settings["config"] | {"n_new": 1}}
    for i, (tensors, body) in enumerate([(renamed, settings), (state, unknown)]):
        write_model(tmp_path / str(i), tensors, body, history)
        with pytest.raises(ModelFileError, match="does not fit this version"):
            PyroCell.load(tmp_path / str(i), cells)


def test_a_class_of_another_name_is_refused(saved, cells):
    class OtherModel(PyroCell):
        pass

    with pytest.raises(ModelFileError, match="holds a PyroCell, not a OtherModel"):
        OtherModel.load(saved, cells)


def test_a_save_that_fails_leaves_the_earlier_model_whole(
    fitted, make_screen, build, copied, monkeypatch
):
    before = {path.name: path.read_bytes() for path in copied.iterdir()}

    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space"):
        build(make_screen()).save(copied, overwrite=True)
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before


def test_a_model_is_replaced_only_when_asked(fitted, make_screen, build, copied, cells):
    with pytest.raises(ModelFileError, match="overwrite=True"):
        fitted.save(copied)
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    assert set(before) == FILES
    other = build(make_screen())
    other.save(copied, overwrite=True)
    assert {path.name for path in copied.iterdir()} == FILES - {"history.csv"}  # it was not trained
    assert PyroCell.load(copied, other.adata).history.empty


def test_cells_can_be_saved_beside_the_model(fitted, tmp_path):
    import anndata

    fitted.save(tmp_path / "model", save_anndata=True)
    adata = anndata.read_h5ad(tmp_path / "model" / "adata.h5ad")
    assert PyroCell.load(tmp_path / "model", adata).is_trained


# ---------------------------------------------------------------------- cells that do not fit


def test_cells_with_other_genes_are_refused(saved, cells):
    with pytest.raises(UnknownLabelError, match="gene00"):
        PyroCell.load(saved, cells[:, 1:].copy())
    renamed = cells.copy()
    renamed.var_names = [f"x{name}" for name in renamed.var_names]
    with pytest.raises(UnknownLabelError, match="12 of the 12 genes"):
        PyroCell.load(saved, renamed)
    with pytest.raises(ScreenError, match="order"):
        PyroCell.load(saved, cells[:, ::-1].copy())


@pytest.mark.parametrize(
    ("column", "label"),
    [("perturbation", "gene99"), ("media", "medium9"), ("batch", "batch9")],
)
def test_cells_with_labels_never_seen_are_refused(saved, cells, column, label):
    values = cells.obs[column].astype(str)
    values.iloc[3] = label
    cells.obs[column] = values
    with pytest.raises(UnknownLabelError, match=label):
        PyroCell.load(saved, cells)


def test_cells_without_a_column_are_refused(saved, cells):
    del cells.obs["media"]
    with pytest.raises(UnknownLabelError, match='media_key="media"'):
        PyroCell.load(saved, cells)


def test_pairs_never_seen_can_be_asked_about_but_not_trained_on(saved, cells):
    screen = Screen.from_dict(json.loads((saved / "model.json").read_text())["screen"]["screen"])
    _, second, third = screen.perturbations
    cells = cells[:30].copy()
    cells.obs["perturbation"] = f"{second}+{third}"
    loaded = PyroCell.load(saved, cells)
    assert np.isfinite(loaded.get_latent_representation()).all()
    assert np.isfinite(
        loaded.predict(pd.DataFrame({"perturbation": ["control"], "time": 1.0})).X
    ).all()
    with pytest.raises(ScreenError, match="new model"):
        loaded.train(max_epochs=1)


def test_a_file_of_version_0_1_gives_the_answers_it_gave(tiny_adata):
    """Written before the rooms were; its dropout has a tensor under a name that has moved."""
    PyroCell.setup_anndata(tiny_adata, media_key="media")
    model = PyroCell.load(KEPT, tiny_adata)
    with np.load(KEPT.with_name(f"{KEPT.name}_answers.npz")) as before:
        effects = model.perturbation_effects(n_samples=20)["mean"]
        assert np.allclose(effects, before["mean"], rtol=1e-4, atol=1e-6)
        asked = model.screen.conditions[["perturbation", "media"]].head(3)
        assert np.allclose(model.predict(asked, n_samples=10).X, before["predicted"], rtol=1e-4)

"""An AnnData becomes a screen: what is read, what is written, and how more cells are added."""

from __future__ import annotations

import inspect
import json
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import pyrocell._compat as compat
from pyrocell import PyroCell
from pyrocell.cli.main import _parser as main_parser
from pyrocell.data.registration import ScreenManager, cell_tensors, register
from pyrocell.data.setup import COLUMNS
from pyrocell.errors import ScreenError, ScreenWarning, UnknownLabelError

pytestmark = pytest.mark.filterwarnings("error::pyrocell.errors.ScreenWarning")


def test_only_scvi_s_own_entries_are_written(tiny_adata):
    before = tiny_adata.copy()
    with pytest.warns(ScreenWarning, match="cannot be told from the covariate"):
        register(
            None,
            tiny_adata,
            media_key="media",
            guide_key="guide",
            size_factor_key="depth",
            categorical_covariate_keys=["guide"],
            continuous_covariate_keys=["depth"],
        )
    new_obs = set(tiny_adata.obs) - set(before.obs)
    assert new_obs == {"_scvi_batch", "_scvi_labels"}
    assert set(tiny_adata.uns) == {"_scvi_uuid", "_scvi_manager_uuid"}
    assert set(tiny_adata.obsm) == {
        "_scvi_extra_categorical_covs",
        "_scvi_extra_continuous_covs",
    }
    pd.testing.assert_frame_equal(tiny_adata.obs[list(before.obs)], before.obs)
    assert (
        (tiny_adata.X != before.X).nnz == 0
        and set(tiny_adata.layers) <= {None}
        and not tiny_adata.varm
    )


def test_the_screen_has_the_conditions_of_the_cells(tiny_adata):
    manager = register(None, tiny_adata, media_key="media", guide_key="guide")
    screen = manager.screen
    assert screen.perturbations == ("IRF1", "JAK2", "STAT1")
    assert screen.target.tolist() == [2, 1, 0]
    assert screen.media == ("IFNG",) and screen.batches == ("lane1", "lane2")
    assert len(screen.conditions) == 8 and screen.aliased["estimable"].all()
    guide = np.array(screen.guides)[screen.cell_guide]
    assert (guide == tiny_adata.obs["guide"].to_numpy()).all()


def test_counts_and_depth_are_the_cells_own(tiny_adata):
    tensors = cell_tensors(register(None, tiny_adata, media_key="media"))
    total = np.asarray(tiny_adata.X.sum(axis=1)).ravel()
    assert tensors.counts.format == "csr" and tensors.counts.dtype == np.float32
    np.testing.assert_array_equal(tensors.counts.toarray(), tiny_adata.X.toarray())
    np.testing.assert_allclose(tensors.log_size_factor, np.log(total), rtol=1e-6)
    assert tensors.covariates.shape == (120, 0) and tensors.covariate_names == ()
    given = cell_tensors(register(None, tiny_adata, size_factor_key="depth"))
    np.testing.assert_allclose(given.log_size_factor, np.log(tiny_adata.obs["depth"]), rtol=1e-6)


@pytest.mark.parametrize("form", [sp.csc_matrix, sp.csr_array, "dense", "float"])
def test_every_form_of_counts_gives_the_same_tensors(tiny_adata, form):
    expected = tiny_adata.X.toarray()
    dense = expected.astype(np.float64 if form == "float" else np.int64)
    layer = np.asfortranarray(dense) if isinstance(form, str) else form(dense)
    tiny_adata.layers["counts"] = layer
    tiny_adata.X = np.log1p(tiny_adata.X.toarray())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Training will be faster")
        manager = register(None, tiny_adata, layer="counts")
    np.testing.assert_array_equal(cell_tensors(manager).counts.toarray(), expected)


def test_covariates_are_standardised_or_one_column_per_level(tiny_adata):
    tiny_adata.obs["donor"] = np.where(np.arange(120) % 3 == 0, "d2", "d1")
    manager = register(
        None,
        tiny_adata,
        categorical_covariate_keys=["donor"],
        continuous_covariate_keys="depth",
    )
    tensors = cell_tensors(manager)
    assert tensors.covariate_names == ("donor[d2]", "depth")
    np.testing.assert_array_equal(tensors.covariates[:, 0], np.arange(120) % 3 == 0)
    assert abs(tensors.covariates[:, 1].mean()) < 1e-6
    assert abs(tensors.covariates[:, 1].std() - 1.0) < 1e-5
    more = tiny_adata[:10].copy()
    other = cell_tensors(manager.transfer_fields(more))
    np.testing.assert_array_equal(other.covariates, tensors.covariates[:10])
    more.obs["donor"] = "d3"
    with pytest.raises(UnknownLabelError, match='"donor" has the value "d3".*never saw'):
        manager.transfer_fields(more)


def test_cell_names_need_not_be_unique(tiny_adata):
    tiny_adata.obs_names = ["cell"] * 120
    assert register(None, tiny_adata).screen.n_cells == 120


def test_a_view_becomes_an_anndata_of_its_own_and_its_parent_stays(tiny_adata):
    parent_obs, view = tiny_adata.obs.copy(), tiny_adata[20:]
    assert register(None, view).screen.n_cells == 100
    assert not view.is_view and "_scvi_batch" in view.obs
    pd.testing.assert_frame_equal(tiny_adata.obs, parent_obs)
    assert not tiny_adata.uns


def test_registering_leaves_numpy_s_global_generator_alone(tiny_adata):
    before = np.random.get_state()[1].copy()
    register(None, tiny_adata)
    assert (np.random.get_state()[1] == before).all()


def test_the_registry_is_json(tiny_adata):
    manager = register(None, tiny_adata, media_key="media", perturbation_key="perturbation")
    assert json.loads(json.dumps(manager.registry["setup_args"]))["media_key"] == "media"
    assert json.loads(json.dumps(manager.registry["pyrocell"]))["screen"]["control"] == "control"


def test_more_cells_may_have_combinations_that_are_new(tiny_adata):
    manager = register(None, tiny_adata, media_key="media")
    more = tiny_adata[:4].copy()
    more.obs["perturbation"] = ["STAT1+JAK2", "STAT1", "control", "IRF1+JAK2"]
    other = manager.transfer_fields(more).screen
    assert other.perturbations == ("IRF1", "JAK2", "STAT1")
    assert other.genotype[other.cell_condition].tolist() == [
        [0, 1, 1],
        [0, 0, 1],
        [0, 0, 0],
        [1, 1, 0],
    ]
    again = register(None, more.copy(), media_key="media", source_registry=manager.registry)
    assert again.screen.conditions.equals(other.conditions)


@pytest.mark.parametrize("column", ["perturbation", "media", "batch"])
def test_more_cells_with_a_label_never_seen_are_refused_and_untouched(tiny_adata, column):
    manager = register(None, tiny_adata, media_key="media")
    more = tiny_adata[:4].copy()
    more.uns.clear()
    more.obs = more.obs[["perturbation", "media", "batch"]].astype(str)
    more.obs.loc[more.obs_names[0], column] = "STAT2"
    before = more.copy()
    with pytest.raises(UnknownLabelError, match=f'{column}_key="{column}".*STAT2.*never saw'):
        manager.transfer_fields(more)
    pd.testing.assert_frame_equal(more.obs, before.obs)
    assert not more.uns


def test_genes_must_be_those_of_the_model(tiny_adata):
    manager = register(None, tiny_adata)
    with pytest.raises(
        UnknownLabelError, match="lacks 2 of the 12 genes of the model \\(gene7, gen"
    ):
        manager.transfer_fields(tiny_adata[:, :-2].copy())
    with pytest.raises(ScreenError, match="another order; pass adata"):
        manager.transfer_fields(tiny_adata[:, ::-1].copy())
    renamed = tiny_adata.copy()
    renamed.var_names = ["Stat1", *renamed.var_names[1:]]
    with pytest.raises(UnknownLabelError, match='lacks 1 .*did you mean "Stat1"'):
        manager.transfer_fields(renamed)
    more = anndata.concat([tiny_adata, tiny_adata[:, :1]], axis=1, merge="same")
    more.var_names = [*tiny_adata.var_names, "extra"]
    with pytest.raises(ScreenError, match="1 genes that the model does not have"):
        manager.transfer_fields(more)


def test_two_registrations_of_one_anndata_stay_apart(tiny_adata):
    first = register(None, tiny_adata, media_key="media")
    second = register(None, tiny_adata)
    first.validate()
    assert len(first.screen.conditions) == 8 and len(second.screen.conditions) == 4


def test_a_copy_gets_an_identity_of_its_own_and_the_original_keeps_its(tiny_adata):
    PyroCell.setup_anndata(tiny_adata)
    first = PyroCell(tiny_adata)
    copy = tiny_adata.copy()
    before, carried = copy.copy(), tiny_adata.uns["_scvi_uuid"]
    PyroCell.setup_anndata(copy)
    assert tiny_adata.uns["_scvi_uuid"] == carried != copy.uns["_scvi_uuid"]
    assert set(copy.uns) == set(before.uns)
    assert copy.obs.equals(before.obs) and (copy.X != before.X).nnz == 0
    assert first._validate_anndata(tiny_adata) is tiny_adata
    assert PyroCell(tiny_adata).adata is tiny_adata and PyroCell(copy).adata is copy
    PyroCell.setup_anndata(copy)  # again: it is no copy of another
    assert PyroCell(copy).adata is copy and PyroCell(tiny_adata).adata is tiny_adata


def test_private_names_of_scvi_are_where_compat_expects_them(tiny_adata):
    from scvi.data import _constants

    assert compat.MODEL_NAME == _constants._MODEL_NAME_KEY
    assert compat.SETUP_METHOD == _constants._SETUP_METHOD_NAME
    assert compat.SETUP_ARGS == _constants._SETUP_ARGS_KEY
    assert compat._IDENTITY == _constants._SCVI_UUID_KEY
    PyroCell.setup_anndata(tiny_adata)
    managers = compat.managers_of(PyroCell)
    assert managers[tiny_adata.uns[compat._IDENTITY]].adata is tiny_adata
    assert issubclass(ScreenManager, compat.AnnDataManager)
    for name in (
        "LayerField",
        "CategoricalObsField",
        "NumericalObsField",
        "CategoricalJointObsField",
        "NumericalJointObsField",
    ):
        assert hasattr(compat.fields, name)
    assert {"X_KEY", "BATCH_KEY", "LABELS_KEY", "SIZE_FACTOR_KEY"} <= set(dir(compat.REGISTRY_KEYS))
    view = tiny_adata[:5]
    compat.materialise_view(view)
    assert not view.is_view and view.n_obs == 5 and tiny_adata.n_obs == 120


def test_arguments_are_those_declared_for_class_registration_and_shell():
    asked = inspect.signature(PyroCell.setup_anndata).parameters
    declared = {column.name: column.default for column in COLUMNS}
    assert {
        name: p.default for name, p in asked.items() if name not in ("adata", "source_registry")
    } == declared
    options = main_parser(["fit"]).parse_args(["fit", "cells.h5ad"])
    assert {name: getattr(options, name) for name in declared} == declared

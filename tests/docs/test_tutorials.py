"""Every tutorial runs from top to bottom, in small sizes."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

DATA = Path(__file__).parents[3] / "shared" / "data"
# Tutorials on screens that are not part of the package: where they look for them, and the file.
NEEDED = {"stimulation": ("PYROCELL_STIMULATION_SCREEN", DATA / "datlinger2021_jurkat_tcr.h5ad")}
TUTORIALS = sorted((Path(__file__).parents[2] / "tutorials").glob("*.ipynb"))


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_is_kept_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata["language_info"]["name"] == "python"
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYROCELL_QUICK", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if path.stem in NEEDED:
        variable, file = NEEDED[path.stem]
        if not file.exists():
            pytest.skip(f"needs {file}")
        monkeypatch.setenv(variable, str(file))
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code" and "pyrocell.pl." in cell.source:
            images = [o for o in cell.outputs if "image/png" in o.get("data", {})]
            assert len(images) == 1, f"not one figure from: {cell.source}"

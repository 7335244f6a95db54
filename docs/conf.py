"""Sphinx configuration."""

from __future__ import annotations

import os
import shutil
from importlib.metadata import version as installed_version
from pathlib import Path

HERE = Path(__file__).parent

project = "pyrocell"
author = "pyrocell contributors"
copyright = f"2026, {author}"
release = version = installed_version("pyrocell")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
]
templates_path = ["_templates"]
exclude_patterns = ["_build"]

html_theme = "sphinx_book_theme"
html_title = "pyrocell"
html_theme_options = {"show_toc_level": 2}

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# The tutorials are kept without outputs: they are executed here in full, in the tests in small.
nb_execution_mode = "cache"
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_output_stderr = "remove"
# Its screen is not part of the package; without it the tutorial is shown, not run.
if "PYROCELL_STIMULATION_SCREEN" not in os.environ:
    nb_execution_excludepatterns = ["**/stimulation.ipynb"]

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"
always_use_bars_union = True
napoleon_numpy_docstring = True
napoleon_google_docstring = False
napoleon_use_rtype = True
napoleon_custom_sections = [("Attributes", "params_style")]


def copy_tutorials(app) -> None:
    """Bring tutorials/ below the source folder, where Sphinx looks."""
    target = HERE / "tutorials"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for notebook in sorted((HERE.parent / "tutorials").glob("*.ipynb")):
        shutil.copy(notebook, target)


def setup(app) -> None:
    app.connect("builder-inited", copy_tutorials)

"""Sphinx configuration."""

from __future__ import annotations

import os
import re
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
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # its files are copied into the site: formulae need no network
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "sphinx_design",
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

# The build needs no network; links to other projects are made where they are asked for.
intersphinx_mapping = {}
if os.environ.get("PYROCELL_DOCS_LINKS") == "1":
    intersphinx_mapping = {
        "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
        "matplotlib": ("https://matplotlib.org/stable/", None),
        "numpy": ("https://numpy.org/doc/stable/", None),
        "pandas": ("https://pandas.pydata.org/docs/", None),
        "pyro": ("https://docs.pyro.ai/en/stable/", None),
        "python": ("https://docs.python.org/3/", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable/", None),
        "scvi-tools": ("https://docs.scvi-tools.org/en/stable/", None),
        "torch": ("https://docs.pytorch.org/docs/stable/", None),
        "xarray": ("https://docs.xarray.dev/en/stable/", None),
    }

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


_GROUP = re.compile(r"^(\s*)(\w+(?:, \w+)+)$")


def ungroup_parameters(app, what, name, obj, options, lines: list[str]) -> None:
    """Give each of several parameters described together an entry that says so.

    Napoleon repeats the text of a group under each name, where it reads as if it were of that one.
    """
    at = 0
    while at + 1 < len(lines):
        group, below = _GROUP.match(lines[at]), lines[at + 1]
        if group and below.startswith(group[1] + "    "):
            first, *others = group[2].split(", ")
            end = at + 1
            while end < len(lines) and (
                not lines[end].strip() or lines[end].startswith(group[1] + "    ")
            ):
                end += 1
            while not lines[end - 1].strip():
                end -= 1
            lines[at] = group[1] + first
            more = []
            for other in others:
                more += [group[1] + other, f"{group[1]}    See `{first}`."]
            named = ", ".join(f"`{n}`" for n in (first, *others))
            lines[at + 1] = f"{group[1]}    ({named}) {below.strip()}"
            lines[end:end] = more
            at = end + len(more)
        else:
            at += 1


def setup(app) -> None:
    app.connect("builder-inited", copy_tutorials)
    app.connect("autodoc-process-docstring", ungroup_parameters, priority=100)  # before napoleon

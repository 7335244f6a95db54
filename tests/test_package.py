"""The package as installed: its version, its typing marker, its declared dependencies."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import pytest

import pyrocell
from pyrocell._core.aliases import MOVED

ROOT = Path(__file__).resolve().parents[1]
# Import name, where it is not the name on the index.
IMPORTED_AS = {
    "vl-convert-python": "vl_convert",
    "pot": "ot",
    "umap-learn": "umap",
    "pyro-ppl": "pyro",
    "scikit-learn": "sklearn",
    "scvi-tools": "scvi",
}


def declared() -> tuple[set[str], set[str]]:
    """Import names of the runtime dependencies and of the optional ones."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        bare = [re.split(r"[<>=!~\[; ]", line)[0] for line in requirements]
        return {IMPORTED_AS.get(name, name) for name in bare}

    extras = project["optional-dependencies"].values()
    return names(project["dependencies"]), set().union(*map(names, extras))


def imported() -> dict[str, str]:
    """Top-level names that the package imports, each with a file that does."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / "pyrocell").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module]
            found |= {name.split(".")[0]: str(path.relative_to(ROOT)) for name in modules}
    return found


def test_version_is_the_installed_one():
    assert pyrocell.__version__ == version("pyrocell")


def test_package_is_typed():
    assert files("pyrocell").joinpath("py.typed").is_file()


def test_every_import_is_declared():
    required, optional = declared()
    known = required | optional | set(sys.stdlib_module_names) | {"pyrocell"}
    undeclared = {name: path for name, path in imported().items() if name not in known}
    assert not undeclared, f"imported but not in pyproject.toml: {undeclared}"


def test_every_dependency_has_a_reason_in_the_docs():
    required, optional = declared()
    page = (ROOT / "docs" / "dependencies.md").read_text()
    index_name = {module: name for name, module in IMPORTED_AS.items()}
    missing = {
        name for name in required | optional if f"`{index_name.get(name, name)}`" not in page
    }
    assert not missing, f"not in docs/dependencies.md: {missing}"


def documented() -> set[str]:
    """Paths that the API page lists, and those that pages and the README name in backticks."""
    api = (ROOT / "docs" / "api.md").read_text()
    listed = re.findall(r"^   ([A-Za-z_]+(?:\.[A-Za-z_]+)*)$", api, flags=re.MULTILINE)
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    named = {
        path
        for page in pages
        if page.name != "changelog.md"
        for path in re.findall(r"`pyrocell\.([A-Za-z_]+(?:\.[A-Za-z_]+)*)", page.read_text())
    }
    return set(listed) | named


@pytest.mark.filterwarnings("error::DeprecationWarning:pyrocell")
@pytest.mark.parametrize("path", sorted(documented()))
def test_a_path_that_the_docs_name_exists_after_one_import(path):
    found = pyrocell
    for part in path.split("."):
        found = getattr(found, part)


@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_import_path_of_an_earlier_version_works_and_says_where_it_went(old):
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {MOVED[old]}"):
        module = importlib.import_module(old)
    new = importlib.import_module(MOVED[old])
    for name in new.__all__:
        assert getattr(module, name) is getattr(new, name)


def test_the_package_itself_uses_no_old_path():
    code = "import pyrocell, pyrocell.cli, pyrocell.report"
    strict = ["-W", "error::DeprecationWarning:pyrocell"]
    subprocess.run([sys.executable, *strict, "-c", code], check=True)


def test_few_modules_lie_beside_the_rooms():
    beside = {path.stem for path in (ROOT / "pyrocell").glob("*.py")}
    assert beside == {"__init__", "_compat", "errors", "model", "parallel", "priors", "transfer"}


def test_files_that_the_docs_name_exist():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    named = {
        path
        for page in pages
        if page.name != "changelog.md"
        for path in re.findall(
            r"`((?:tests|benchmarks|scripts|pyrocell|docs)/[A-Za-z0-9_/.]*)`", page.read_text()
        )
    }
    missing = {path for path in named if not (ROOT / path).exists() and "NAME" not in path}
    assert not missing

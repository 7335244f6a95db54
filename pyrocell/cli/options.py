"""The options that say what a screen is, and the screen that is read with them."""

from __future__ import annotations

import argparse
from dataclasses import Field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pyrocell.cli.words import FILES, say
from pyrocell.data.setup import COLUMNS, resembling_columns

if TYPE_CHECKING:  # loaded when a command runs, so that its help is quick
    from anndata import AnnData

    from pyrocell.data.registration import ScreenManager
    from pyrocell.screen.screen import Screen

__all__ = [
    "add_column",
    "add_screen",
    "counted",
    "number_of",
    "read_screen",
    "register",
]


def add_column(group: argparse._ArgumentGroup, column: Field) -> None:
    """Add the option of an argument of `setup_anndata`; those that take several are repeated."""
    said = column.metadata
    several = column.name.endswith("_keys")
    option = "--" + (column.name.removesuffix("s") if several else column.name).replace("_", "-")
    shown = said["help"] if column.default is None else f"{said['help']} (%(default)s)"
    more: dict[str, Any]
    if several:
        more = {"action": "append", "metavar": said["metavar"]}
    elif "type" in said:
        more = {"metavar": said["metavar"], "type": said["type"]}
    elif "choices" in said:
        more = {"choices": said["choices"]}
    elif "None" not in str(column.type):
        more = {"metavar": said["metavar"]}
    else:  # an empty name says that there is none
        more = {"metavar": said["metavar"], "type": lambda name: name or None}
    group.add_argument(option, dest=column.name, default=column.default, help=shown, **more)


def number_of(n: int, name: str) -> str:
    """A number of things, in words."""
    many = {"medium": "media", "batch": "batches"}.get(name, f"{name}s")
    return f"{n:,} {name if n == 1 else many}"


def counted(screen: Screen) -> str:
    """What a screen has, and how much of it."""
    parts = {
        "cell": screen.n_cells,
        "gene": len(screen.genes),
        "perturbation": len(screen.perturbations),
        "medium": 1 + len(screen.media),
        "time": len(screen.times),
        "batch": len(screen.batches),
    }
    return ", ".join(number_of(n, name) for name, n in parts.items() if n)


def add_screen(parser: argparse.ArgumentParser) -> None:
    """Add the file of cells, and the options that say what its columns mean."""
    parser.add_argument("file", metavar="FILE", type=Path, help=f"raw counts of cells: {FILES}")
    screen = parser.add_argument_group("the screen", "columns of .obs, and labels in them")
    screen.add_argument(
        "--labels",
        metavar="TABLE",
        type=Path,
        help="labels of cells that FILE lacks: .csv or .tsv whose first column names the cells",
    )
    screen.add_argument(
        "--view",
        metavar="VIEW=MODALITY",
        action="append",
        default=[],
        help="of a .h5mu, a view of cells and the modality it is in, such as protein=prot; "
        "repeated for each of several views that are to be fitted together",
    )
    for column in COLUMNS:
        add_column(screen, column)


def read_screen(arguments: argparse.Namespace) -> tuple[AnnData, Screen]:
    """Read, say which columns are used, and register."""
    from pyrocell.cli.reading import read_cells, read_table

    say(f"reading {arguments.file}")
    if arguments.view:
        return _read_views(arguments)
    adata = read_cells(arguments.file, arguments.labels)
    setup = {column.name: getattr(arguments, column.name) for column in COLUMNS}
    targets = setup["guide_targets"]
    if targets is not None and Path(targets).suffix in (".csv", ".tsv", ".txt", ".tab"):
        setup["guide_targets"] = read_table(Path(targets))
    return adata, register(adata, setup)


def _read_views(arguments: argparse.Namespace) -> tuple[AnnData, Screen]:
    """Read several modalities of a .h5mu, and register them as views of one state."""
    from pyrocell.cli.reading import add_labels, read_modalities
    from pyrocell.model import join_views

    modalities = {}
    for given in arguments.view:
        view, _, name = given.partition("=")
        modalities[view] = name or view
    mdata = read_modalities(arguments.file)
    setup = {column.name: getattr(arguments, column.name) for column in COLUMNS}
    batch_key = setup.pop("batch_key")
    if arguments.labels is not None:
        add_labels(mdata, arguments.labels)
    adata, setup["batch_key"] = join_views(mdata, modalities, batch_key, None, None, setup)
    return adata, register(adata, setup)


def register(adata: AnnData, setup: dict[str, Any]) -> Screen:
    """Say which columns are used, and register."""
    from pyrocell.model import PyroCell

    _say_columns(adata, setup)
    PyroCell.setup_anndata(adata, **setup)
    manager = PyroCell._get_most_recent_anndata_manager(adata, required=True)
    return cast("ScreenManager", manager).screen


def _say_columns(adata: AnnData, setup: dict[str, Any]) -> None:
    """Say which columns are used, and which others look as if they belonged to the screen."""
    keys = {name: value for name, value in setup.items() if name.endswith(("_key", "_keys"))}
    if keys.get("guide_matrix_key") is not None:  # it takes the place of the column
        keys.pop("perturbation_key", None)
    named = {name: [key] if isinstance(key, str) else list(key or ()) for name, key in keys.items()}
    used = [f"{key} ({name.removesuffix('s')})" for name, each in named.items() for key in each]
    say(f"columns used: {', '.join(used)}")
    for option, found in resembling_columns([str(c) for c in adata.obs], setup).items():
        flag = "--" + option.removesuffix("s").replace("_", "-")
        say(f"column not used: {', '.join(found)}; if it belongs to the screen, {flag}")

"""Command line: `pyrocell fit`, from counts to a report."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrocell.cli.options import add_screen, counted, read_screen
from pyrocell.cli.words import natural, positive, say

if TYPE_CHECKING:  # loaded when a command runs, so that its help is quick
    import pandas as pd
    from anndata import AnnData

    from pyrocell.model import PyroCell

__all__ = ["add_model", "add_options", "add_output", "fit_and_report", "train", "write_report"]

_MODEL = ("n_latent", "n_response", "likelihood", "dynamics", "interactions")
_DESCRIPTION = """\
Fit raw counts of a screen, and write its report: report.html to look at, tables, figures, the
annotated cells and the model. It prints a summary that says first whether the fit can be believed.

Columns of .obs are named by options; none is guessed. `pyrocell check` with the same options says
beforehand what the screen can tell and how long this will take: about 2 minutes for 15,000 cells
of 100 genes, half an hour for 100,000 cells of 2,000 genes, on two cores."""
_EXAMPLES = """\
examples:
  pyrocell fit screen.h5ad --batch-key lane --perturbation-key gene --control NT -o results
  pyrocell fit screen.h5ad --batch-key lane --perturbation-key gene --control "NT*" \\
      --media-key stimulus --baseline-media none -o results"""
_CONTENTS = """\
  report.html     everything below to look at, in one file: open it in a browser
  summary.md      this summary
  tables/         effects, assumptions, batch effects, predictive check, layout, ...
  figures/        pictures of the same
  annotated.h5ad  the cells, with the resting state in .obsm["X_pyrocell"]
  model/          the fitted model: pyrocell.PyroCell.load("{0}/model", adata)"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description, parser.epilog = _DESCRIPTION, _EXAMPLES
    add_screen(parser)
    add_output(parser, Path("pyrocell-fit"))
    add_model(parser)
    parser.set_defaults(command=_fit)


def add_output(parser: argparse.ArgumentParser, default: Path) -> None:
    """Where the results go, and in which form."""
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        type=Path,
        default=default,
        help="for the results (%(default)s)",
    )
    parser.add_argument("--force", action="store_true", help="overwrite DIR")
    parser.add_argument(
        "--tables", choices=("csv", "parquet"), default="csv", help="format (%(default)s)"
    )
    parser.add_argument(
        "--gene-sets",
        metavar="FILE.gmt",
        type=Path,
        action="append",
        default=[],
        help="test the effects of each perturbation for these sets of genes; may be repeated",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """How the model is made and trained."""
    parser.add_argument(
        "--umap",
        action="store_true",
        help="put a UMAP of the resting state into annotated.h5ad (half a minute for 15,000 cells)",
    )
    model = parser.add_argument_group("the model")
    number: dict[str, Any] = {"metavar": "N"}
    model.add_argument(
        "--n-latent",
        type=positive,
        default=10,
        help="axes of resting state (%(default)s)",
        **number,
    )
    model.add_argument(
        "--n-response",
        type=natural,
        default=8,
        help="further axes of response (%(default)s)",
        **number,
    )
    model.add_argument(
        "--likelihood", choices=("zinb", "nb"), default="zinb", help="of counts (%(default)s)"
    )
    model.add_argument(
        "--dynamics",
        choices=("relaxation", "node", "flow", "sde", "none"),
        default="relaxation",
        help="how a response unfolds in time (%(default)s)",
    )
    model.add_argument(
        "--interactions",
        action="store_true",
        help="let combinations depart from the sum of their parts",
    )
    model.add_argument(
        "--max-epochs", type=positive, help="by the number of cells if not given", **number
    )
    model.add_argument(
        "--seed", type=natural, default=0, help="same seed, same result (%(default)s)", **number
    )
    model.add_argument(
        "--accelerator",
        choices=("auto", "cpu", "gpu"),
        default="auto",
        help="where to train (%(default)s)",
    )
    model.add_argument(
        "--shuffle-check",
        action="store_true",
        help="also fit the cells with labels shuffled, for a few epochs: nothing should be found",
    )


def _fit(arguments: argparse.Namespace) -> None:
    from pyrocell.report import check_target

    check_target(arguments.output, arguments.force, arguments.tables, arguments.gene_sets)
    adata, _ = read_screen(arguments)
    fit_and_report(adata, arguments)


def fit_and_report(
    adata: AnnData, arguments: argparse.Namespace, steps: pd.DataFrame | None = None
) -> None:
    """Train on registered cells as the options say, and write the report.

    `steps` is what was done to the counts before.

    Raises
    ------
    KeyboardInterrupt
        If training was interrupted; the model as far as it was trained is kept.
    """
    from pyrocell.model import PyroCell
    from pyrocell.report.writing import MODEL

    model = PyroCell(adata, **{name: getattr(arguments, name) for name in _MODEL})
    train(model, arguments.max_epochs, arguments.accelerator, arguments.seed)
    if model.interrupted_:
        model.save(arguments.output / MODEL, overwrite=True)
        say(f"the model, as far as it was trained, is in {arguments.output / MODEL}; no report")
        raise KeyboardInterrupt
    if arguments.shuffle_check:
        say("fitting shuffled labels")
        model.shuffle_check(seed=arguments.seed, progress_bar=False)
    write_report(
        model,
        arguments.output,
        arguments.force,
        tables=arguments.tables,
        gene_sets=arguments.gene_sets,
        umap=arguments.umap,
        title=arguments.file.stem,
        command=arguments.typed,
        steps=steps,
    )


def train(
    model: PyroCell,
    max_epochs: int | None,
    accelerator: str = "auto",
    seed: int = 0,
) -> None:
    """Train, saying how far it is."""
    from pyrocell.cli.progress import Progress  # loads torch

    say(f"fitting {counted(model.screen)}")
    start = time.monotonic()
    model.train(
        max_epochs,
        accelerator=accelerator,
        seed=seed,
        progress_bar=False,
        callbacks=[Progress()],
    )
    say(f"fitted in {time.monotonic() - start:.0f} s")


def write_report(model: PyroCell, output: Path, overwrite: bool, **options: Any) -> None:
    """Write the report, print its summary, and say what is where; `options` of `report.write`."""
    from pyrocell import report

    written = report.write(
        model, output, overwrite=overwrite, say=lambda step: say(f"writing {step}"), **options
    )
    print(written.text)
    print(f"Written to {output}:\n{_CONTENTS.format(output)}", flush=True)

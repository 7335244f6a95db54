"""Command line: `pyrocell demo`, the embedded screen from counts to report."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from pyrocell.cli.fit import train, write_report

__all__ = ["add_options"]

_EPOCHS, _QUICK = 120, 3
_DESCRIPTION = """\
Fit the embedded hiPSC knockout time course (14,945 cells, 103 genes, 23 knockouts, days 2 to 5),
write its report and print what it shows. It takes about two minutes on two cores; no network."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description = _DESCRIPTION
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        type=Path,
        default=Path("pyrocell-demo"),
        help="for the results (%(default)s)",
    )
    parser.add_argument("--quick", action="store_true", help="a few epochs, to see that it runs")
    parser.set_defaults(command=_demo)


def _demo(arguments: argparse.Namespace) -> None:
    from pyrocell import datasets, report
    from pyrocell.model import PyroCell

    # What an earlier demo wrote may go; anything else stays.
    overwrite = (arguments.output / "model" / "model.json").is_file()
    report.check_target(arguments.output, overwrite)
    adata = datasets.hipsc_timecourse()
    source = adata.uns["source"]
    for paragraph in (source["citation"], source["caveats"]):
        print(textwrap.fill(paragraph, 100) + "\n", flush=True)
    PyroCell.setup_anndata(adata, time_key="time", size_factor_key="size_factor")
    model = PyroCell(adata)
    train(model, _QUICK if arguments.quick else _EPOCHS)
    title = "hiPSC knockout time course (Ishikawa et al. 2023)"
    write_report(model, arguments.output, overwrite, title=title, command=arguments.typed)

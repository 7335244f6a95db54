"""Command line: `fit` and `check` counts, `demo` of the embedded screen, `design` of the next one.

The summary goes to standard output; progress, warnings and errors go to standard error.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException

import pyrocell
from pyrocell.cli.check import add_check
from pyrocell.cli.design import add_design
from pyrocell.cli.options import add_screen, counted, natural, positive, read_screen, say
from pyrocell.data.setup import COLUMNS
from pyrocell.errors import PyrocellError, ScreenWarning
from pyrocell.report.writing import MODEL

__all__ = ["main"]

_DEMO_EPOCHS, _QUICK_EPOCHS = 120, 3
_LINES = 10  # of progress where there is no terminal
_REFRESH = 0.5  # seconds, of progress on a terminal
_ARGUMENT = re.compile(rf'\b({"|".join(column.name for column in COLUMNS)})=(None\b|"|)')
_CONTENTS = """\
  summary.md      this summary
  tables/         effects, batch effects, predictive check, layout, aliasing, ...
  figures/        the same to look at
  annotated.h5ad  the cells, with the resting state in .obsm["X_pyrocell"]
  model/          the fitted model: pyrocell.PyroCell.load("{0}/model", adata)"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code: 0 done, 2 unusable input, 130 Ctrl-C."""
    arguments = _parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # η, × and ± on terminals that lack them
    try:
        with _plain_warnings(), _terminable():
            arguments.command(arguments)
    except BrokenPipeError:  # who reads what is printed has gone, after the work was done
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (PyrocellError, MisconfigurationException, OSError) as error:
        say(f"pyrocell: error: {' '.join(_as_options(str(error)).split())}")
        return 2
    except KeyboardInterrupt:
        say("pyrocell: interrupted")
        return 130
    return 0


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM says a line and ends with the exit code that shells expect."""

    def terminated(*_: Any) -> None:
        say("pyrocell: terminated; what was said to be written is whole")
        raise SystemExit(128 + signal.SIGTERM)

    if threading.current_thread() is not threading.main_thread():  # which alone has handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pyrocell",
        description="Posteriors of perturbations, media and batches from raw counts of a CRISPR "
        "screen.",
    )
    parser.add_argument("--version", action="version", version=f"pyrocell {pyrocell.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_fit(commands)
    demo = commands.add_parser(
        "demo",
        help="fit the embedded screen, end to end",
        description="Fit the embedded hiPSC knockout time course (14,945 cells, 103 genes, 23 "
        "knockouts, days 2 to 5); write and print what it shows. About two minutes on two cores.",
    )
    demo.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        type=Path,
        default=Path("pyrocell-demo"),
        help="for the results (%(default)s)",
    )
    demo.add_argument("--quick", action="store_true", help="a few epochs, to see that it runs")
    demo.set_defaults(command=_demo)
    add_check(commands)
    add_design(commands)
    return parser


def _add_fit(commands: Any) -> None:
    fit = commands.add_parser(
        "fit",
        help="fit a screen and write its report",
        description="Fit raw counts of a screen; write model, tables, figures and a summary.",
    )
    add_screen(fit)
    fit.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        type=Path,
        default=Path("pyrocell-fit"),
        help="for the results (%(default)s)",
    )
    fit.add_argument("--force", action="store_true", help="overwrite DIR")
    fit.add_argument(
        "--tables", choices=("csv", "parquet"), default="csv", help="format (%(default)s)"
    )

    model = fit.add_argument_group("the model")
    number = {"metavar": "N"}
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
    fit.set_defaults(command=_fit)


def _fit(arguments: argparse.Namespace) -> None:
    pyrocell.report.check_target(arguments.output, arguments.force, arguments.tables)
    adata, _ = read_screen(arguments)
    names = ("n_latent", "n_response", "likelihood", "dynamics", "interactions")
    model = pyrocell.PyroCell(adata, **{name: getattr(arguments, name) for name in names})
    _train(model, arguments.max_epochs, arguments.accelerator, arguments.seed)
    if model.interrupted_:
        model.save(arguments.output / MODEL, overwrite=True)
        say(f"the model, as far as it was trained, is in {arguments.output / MODEL}; no report")
        raise KeyboardInterrupt
    if arguments.shuffle_check:
        say("fitting shuffled labels")
        model.shuffle_check(seed=arguments.seed, progress_bar=False)
    _report(model, arguments.output, arguments.force, arguments.tables)


def _demo(arguments: argparse.Namespace) -> None:
    # What an earlier demo wrote may go; anything else stays.
    overwrite = (arguments.output / "model" / "model.json").is_file()
    pyrocell.report.check_target(arguments.output, overwrite)
    adata = pyrocell.datasets.hipsc_timecourse()
    source = adata.uns["source"]
    for paragraph in (source["citation"], source["caveats"]):
        print(textwrap.fill(paragraph, 100) + "\n", flush=True)
    pyrocell.PyroCell.setup_anndata(adata, time_key="time", size_factor_key="size_factor")
    model = pyrocell.PyroCell(adata)
    _train(model, _QUICK_EPOCHS if arguments.quick else _DEMO_EPOCHS)
    _report(model, arguments.output, overwrite)


def _train(
    model: pyrocell.PyroCell,
    max_epochs: int | None,
    accelerator: str = "auto",
    seed: int = 0,
) -> None:
    say(f"fitting {counted(model.screen)}")
    start = time.monotonic()
    model.train(
        max_epochs,
        accelerator=accelerator,
        seed=seed,
        progress_bar=False,
        callbacks=[_Progress()],
    )
    say(f"fitted in {time.monotonic() - start:.0f} s")


class _Progress(pl.Callback):
    """How far training is: one line that is rewritten on a terminal, else a line at every tenth."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self.terminal = sys.stderr.isatty()
        self.start = self.shown = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        """Say so if it is time to."""
        done, total = trainer.global_step, int(trainer.estimated_stepping_batches)
        now = time.monotonic()
        if self.terminal:
            due = now - self.shown > _REFRESH or done == total
        else:
            due = done * _LINES // total > (done - 1) * _LINES // total
        if not due:
            return
        self.shown = now
        elbo = trainer.callback_metrics.get("validation_elbo")
        score = "" if elbo is None else f", held-out ELBO {float(elbo):.2f} nats per cell"
        left = timedelta(seconds=round((now - self.start) * (total - done) / done))
        line = f"  epoch {trainer.current_epoch + 1} of {trainer.max_epochs}{score}, {left} left"
        print(f"\r{line:<78}" if self.terminal else line, file=sys.stderr, flush=True,
              end="" if self.terminal else "\n")  # fmt: skip

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the rewritten line."""
        if self.terminal:
            say("")


def _report(model: pyrocell.PyroCell, output: Path, overwrite: bool, tables: str = "csv") -> None:
    report = pyrocell.report.write(
        model, output, overwrite=overwrite, tables=tables, say=lambda step: say(f"writing {step}")
    )
    print(report.text)
    print(f"Written to {output}:\n{_CONTENTS.format(output)}", flush=True)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print what pyrocell warns of as plain text; leave out its dependencies' warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module=r"pyrocell|__main__")
        warnings.filterwarnings("default", category=ScreenWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
        warnings.showwarning = lambda message, *_, **__: say(
            f"warning: {_as_options(str(message))}"
        )
        yield


def _as_options(text: str) -> str:
    """Arguments in a message, such as batch_key="lane", as the options that were typed."""

    def option(found: re.Match[str]) -> str:
        name = found[1].replace("_", "-").removesuffix("s")
        return f"--{name}" + {"None": " ''", '"': ' "', "": ""}[found[2]]

    return _ARGUMENT.sub(option, text)

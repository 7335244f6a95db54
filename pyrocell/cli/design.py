"""Command line: `pyrocell design`, a layout for the next screen."""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from pyrocell import design, plotting
from pyrocell.cli.reading import read_cells
from pyrocell.cli.words import natural, positive, say
from pyrocell.design.summary import summary
from pyrocell.errors import DesignError, PyrocellError
from pyrocell.model import PyroCell
from pyrocell.report import check_target

__all__ = ["add_options"]

_DPI = 150
_PLAN = [f.name for f in fields(design.Plan)]
_NOISE = [f.name for f in fields(design.Noise) if f.name != "share"]
_FIELD = re.compile(rf"\b({'|'.join([*_PLAN, *_NOISE])})=")
_DESCRIPTION = """\
Recommend which media, times and controls to put in which lane, and say what error to expect;
write lane map, tables, figures and a summary."""
_DIGITS = "%.8g"  # of numbers in tables, so that none ends in the noise of its last bits
_CONTENTS = {
    "summary.md": "this summary",
    "lane_map.csv": "what to load into each lane",
    "contrasts.csv": "expected error of every contrast, and what is mixed with batch noise",
    "comparison.csv": "this layout beside others",
    "cost_curve.csv": "what other numbers of lanes and shares of controls would give",
    "figures/lane_map.png": "what to load, as a figure",
    "figures/layout_graph.png": "which conditions and lanes are linked by cells",
    "figures/cost_curve.png": "the costs, as a figure",
}  # in the order in which they are announced, of those that were written


def add_options(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description = _DESCRIPTION
    parser.add_argument(
        "-o", "--output", metavar="DIR", type=Path, default=Path("pyrocell-design"),
        help="for the results (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="overwrite DIR")
    parser.add_argument(
        "--no-curve", action="store_true", help="leave out the cost curve, which takes longest"
    )
    _add_plan(parser.add_argument_group("the plan"))
    _add_noise(parser.add_argument_group(
        "noise", "standard deviations in natural-log fold change; typical values if not given"
    ))  # fmt: skip
    parser.set_defaults(command=_design)


def _add_plan(plan: Any) -> None:
    number, positive_number = {"metavar": "N"}, {"metavar": "N", "type": positive}
    plan.add_argument(
        "--perturbations", required=True, metavar="N|FILE", help="how many, or a file of names"
    )
    plan.add_argument("--control", default="control", metavar="LABEL", help="(%(default)s)")
    plan.add_argument(
        "--media", nargs="+", default=["baseline"], metavar="NAME",
        help="the medium without stimulus first (%(default)s)",
    )  # fmt: skip
    plan.add_argument("--times", nargs="+", type=float, default=(), metavar="T", help="if several")
    plan.add_argument("--lanes", default=8, help="there can be (%(default)s)", **positive_number)
    plan.add_argument(
        "--cells-per-lane", default=10_000, help="that one yields (%(default)s)", **positive_number
    )
    plan.add_argument(
        "--no-hashing", dest="hashing", action="store_false",
        help="a lane holds one medium at one time",
    )  # fmt: skip
    plan.add_argument("--arms-per-lane", help="most media-and-times in a lane", **positive_number)
    plan.add_argument(
        "--apart", nargs=2, action="append", default=[], metavar=("A", "B"),
        help="media that cannot share a lane; may be repeated",
    )  # fmt: skip
    plan.add_argument(
        "--min-controls", default=0, type=natural, help="in every lane (%(default)s)", **number
    )
    plan.add_argument(
        "--min-cells", default=1, type=natural,
        help="of every perturbation in each medium at each time (%(default)s)", **number,
    )  # fmt: skip
    plan.add_argument("--control-share", type=float, metavar="X", help="where the library fixes it")
    plan.add_argument("--libraries", default=1, help="sub-libraries", **positive_number)
    plan.add_argument("--libraries-per-lane", help="most in a lane", **positive_number)
    plan.add_argument(
        "--targets", nargs="+", choices=design.KINDS, metavar="KIND",
        help=f"questions that count: {', '.join(design.KINDS)} (all that there are)",
    )  # fmt: skip
    plan.add_argument(
        "--lane-map", type=Path, action="append", default=[], metavar="FILE.csv",
        help="a layout to score beside, as in lane_map.csv; may be repeated",
    )  # fmt: skip


def _add_noise(noise: Any) -> None:
    noise.add_argument("--model", type=Path, metavar="DIR", help="a fitted model to read it off")
    noise.add_argument("--cells", type=Path, metavar="FILE.h5ad", help="the cells it was fitted to")
    for name in _NOISE:
        noise.add_argument(f"--{name.replace('_', '-')}", type=float, metavar="X")


def _design(arguments: argparse.Namespace) -> None:
    check_target(arguments.output, arguments.force)
    try:
        _carry_out(arguments)
    except DesignError as error:
        raise DesignError(_as_options(str(error))) from error


def _carry_out(arguments: argparse.Namespace) -> None:
    plan = design.Plan(
        _perturbations(arguments.perturbations),
        **{name: getattr(arguments, name) for name in _PLAN if name != "perturbations"},
    )
    others = {file.stem: design.read_lane_map(file, plan) for file in arguments.lane_map}
    noise = _noise(arguments)
    say(f"searching layouts of {plan.lanes} lanes")
    found = design.recommend(plan, noise, arguments.targets)
    for name, layout in others.items():
        for broken in plan.violations(layout):
            say(f"warning: {name} does not meet the plan: {_as_options(broken)}")
    every = {"recommended": found.layout, **others}
    comparison = design.compare(every, noise, arguments.targets) if others else None
    curve = None
    if not arguments.no_curve:
        say("trying other numbers of lanes and shares of controls")
        curve = design.cost_curve(plan, noise, arguments.targets)
    text = summary(found)
    if comparison is not None:
        text += "\n## Beside the lane maps given\n\n```\n" + comparison.round(4).to_string()
        text += "\n```\n"
    _write(found, comparison, curve, text, arguments.output)
    print(text)
    print(f"Written to {arguments.output}:")
    for name, content in _CONTENTS.items():
        if (arguments.output / name).exists():
            print(f"  {name:<26}{content}")
    sys.stdout.flush()


def _perturbations(text: str) -> int | list[str]:
    """How many, or the names in a file."""
    if text.isdecimal():
        return int(text)
    file = Path(text)
    if not file.is_file():
        raise PyrocellError(f'--perturbations "{text}" is neither a number nor a file of names')
    names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    return [name for name in names if name]


def _noise(arguments: argparse.Namespace) -> design.Noise:
    stated = {name: getattr(arguments, name) for name in _NOISE}
    stated = {name: value for name, value in stated.items() if value is not None}
    if (arguments.model is None) != (arguments.cells is None):
        raise PyrocellError("--model and --cells go together: the model, and what it was fitted to")
    if arguments.model is None:
        return design.Noise(**stated)
    say(f"reading noise off {arguments.model}")
    model = PyroCell.load(arguments.model, read_cells(arguments.cells))
    return design.Noise.from_model(model, **stated)


def _write(
    found: design.Recommendation,
    comparison: pd.DataFrame | None,
    curve: pd.DataFrame | None,
    text: str,
    directory: Path,
) -> None:
    """Write tables and figures."""
    (directory / "figures").mkdir(parents=True, exist_ok=True)
    for name in _CONTENTS:  # what an earlier run left would be announced as this one's
        (directory / name).unlink(missing_ok=True)
    (directory / "summary.md").write_text(text, encoding="utf-8")
    design.lane_map(found.layout).to_csv(
        directory / "lane_map.csv", index=False, float_format=_DIGITS
    )
    reasons = design.aliasing(found.layout)[["aliased_with", "reason"]]
    found.score.contrasts.join(reasons).to_csv(
        directory / "contrasts.csv", index=False, float_format=_DIGITS
    )
    tables = [found.comparison, comparison]
    both = pd.concat([table for table in tables if table is not None])
    both[~both.index.duplicated()].to_csv(
        directory / "comparison.csv", index_label="layout", float_format=_DIGITS
    )
    drawn = {
        "lane_map": plotting.lane_map(found.layout),
        "layout_graph": plotting.layout_graph(found.layout),
    }
    if curve is not None:
        curve.to_csv(directory / "cost_curve.csv", index=False, float_format=_DIGITS)
        drawn["cost_curve"] = plotting.cost_curve(curve)[0]
    for name, ax in drawn.items():
        ax = np.atleast_1d(ax)[0]
        ax.figure.savefig(directory / "figures" / f"{name}.png", dpi=_DPI)
        plt.close(ax.figure)


def _as_options(text: str) -> str:
    """Fields in a message, such as min_cells=400, as the options that were typed."""
    text = text.replace("hashing=False", "--no-hashing")
    return _FIELD.sub(lambda found: f"--{found[1].replace('_', '-')} ", text)

"""Command line: `pyrocell run`, from what Cell Ranger wrote to the report."""

from __future__ import annotations

import argparse
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrocell.cli.fit import add_model, add_output, fit_and_report
from pyrocell.cli.options import add_column, register
from pyrocell.cli.words import natural, positive, say
from pyrocell.data.setup import COLUMNS
from pyrocell.errors import PyrocellError

if TYPE_CHECKING:  # loaded when a command runs, so that its help is quick
    import pandas as pd
    from anndata import AnnData

    from pyrocell.preprocess import GuideCalls

__all__ = ["add_options"]

# arguments of `setup_anndata` that follow from the calls of guides
_OF_LABELS = (
    *("perturbation_key", "layer", "guide_key"),
    *("guide_matrix_key", "guide_targets", "guide_threshold"),
)
_DESCRIPTION = """\
Read what Cell Ranger counted, call the guides of each cell, filter cells and genes, choose genes,
fit, and write the report of `pyrocell fit`. Every step says its rule and what it left out; each can
be switched off. Nothing is downloaded.

FOLDER is one that Cell Ranger wrote, with guides captured as features of the type "CRISPR Guide
Capture", or holds a subfolder for each lane; lanes are the batches. Guides are called by a mixture
of ambient and own counts. A cell with guides of one gene gets that gene as its label, one with
control guides alone is a control, and one with guides of several genes is left out.

A file .h5ad with raw counts may take the place of FOLDER: with counts of guides in .obsm, or with
labels of cells in a column that --assigned names."""
_EXAMPLES = """\
examples:
  pyrocell run cellranger/outs -o results
  pyrocell run lanes/ --guides guides.csv --lanes lanes.csv --media-key stimulus \\
      --baseline-media none -o results
  pyrocell run screen.h5ad --assigned gene --control NT -o results"""
_STEPS, _GUIDES, _CELLS, _PREPARED = "steps.csv", "guides.csv", "guide_calls.csv", "prepared.h5ad"
_CONTENTS = """\
  steps.csv        what was done to the counts, and by which rule"""
_CALLS = """\
  guides.csv       counts, threshold and cells of each guide in each lane
  guide_calls.csv  the guides of every cell that was read, whether it was kept or not"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description, parser.epilog = _DESCRIPTION, _EXAMPLES
    parser.add_argument(
        "file", metavar="FOLDER", type=Path,
        help="of Cell Ranger, of lanes, a file filtered_feature_bc_matrix.h5, or .h5ad",
    )  # fmt: skip
    add_output(parser, Path("pyrocell-run"))
    parser.add_argument(
        "--no-fit", action="store_true", help="stop before the fit and write prepared.h5ad"
    )
    _add_guides(parser.add_argument_group("guides"))
    _add_filters(parser.add_argument_group("cells and genes"))
    screen = parser.add_argument_group("the screen", "columns of .obs, and labels in them")
    table = "labels of {}: .csv or .tsv whose first column names the {}; its columns join .obs"
    screen.add_argument(
        "--lanes", metavar="TABLE", type=Path, help=table.format("lanes, such as media", "lane")
    )
    screen.add_argument("--labels", metavar="TABLE", type=Path, help=table.format("cells", "cell"))
    for column in COLUMNS:
        if column.name not in _OF_LABELS:
            add_column(screen, column)
    add_model(parser)
    parser.set_defaults(command=_run)


def _add_guides(group: Any) -> None:
    group.add_argument(
        "--guides", metavar="FILE.csv", type=Path,
        help="columns guide and gene; without it the gene is read from the guide's name (STAT1_2, "
        "sgSTAT1-g2), or from Cell Ranger's feature reference",
    )  # fmt: skip
    group.add_argument(
        "--control-guides", metavar="PATTERN", action="append",
        help="control guides or their targets, with * and ?; may be repeated. If not given: names "
        "with non-targeting, or that begin with NT, NTC, neg, control, ctrl, safe or scramble",
    )  # fmt: skip
    group.add_argument(
        "--call", choices=("mixture", "threshold"), default="mixture",
        help="how guides are called (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--call-probability", type=_share, default=0.5, metavar="X",
        help="least probability of a call by the mixture (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--call-counts", type=positive, metavar="N",
        help="least count of a call: 2 for the mixture, 5 for thresholds if not given",
    )  # fmt: skip
    group.add_argument(
        "--multiplets", choices=("drop", "combine"), default="drop",
        help="cells with guides of several genes: leave out, or label A+B (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--guide-counts", metavar="NAME", default="guides",
        help="entry of .obsm with counts of guides, in a file .h5ad (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--assigned", metavar="COLUMN",
        help="labels of cells that are there already; no guides are called. Cells without one are "
        "left out",
    )  # fmt: skip


def _add_filters(group: Any) -> None:
    group.add_argument("--no-filter-cells", action="store_true", help="keep all cells")
    group.add_argument(
        "--min-counts", type=natural, metavar="N",
        help="of a cell: 500, or one for each gene where genes are fewer, if not given",
    )  # fmt: skip
    group.add_argument(
        "--min-genes", type=natural, metavar="N",
        help="with counts in a cell: 200, or a tenth of the genes where this is less, if not given",
    )  # fmt: skip
    group.add_argument(
        "--max-mito", type=_share, default=0.2, metavar="X",
        help="largest share of mitochondrial counts (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--mads", type=float, default=5.0, metavar="X",
        help="most median absolute deviations of log counts and genes from the median of the "
        "batch; 0 for no such rule (%(default)s)",
    )  # fmt: skip
    group.add_argument("--no-filter-genes", action="store_true", help="keep genes of few cells")
    group.add_argument(
        "--min-cells", type=natural, default=10, metavar="N",
        help="with counts of a gene (%(default)s)",
    )  # fmt: skip
    group.add_argument("--no-choose-genes", action="store_true", help="keep genes that vary little")
    group.add_argument(
        "--n-genes", type=positive, default=2000, metavar="N",
        help="that vary most; perturbed genes are kept beside (%(default)s)",
    )  # fmt: skip


def _share(text: str) -> float:
    """A number from 0 to 1, as a type of an option."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f'"{text}" is not a number from 0 to 1')
    return value


def _run(arguments: argparse.Namespace) -> None:
    from pyrocell import preprocess
    from pyrocell.report import check_target

    if arguments.assigned is None and arguments.control != "control":
        raise PyrocellError(
            f'--control "{arguments.control}" is a label of --assigned; name control guides by '
            "--control-guides"
        )
    check_target(arguments.output, arguments.force, arguments.tables, arguments.gene_sets)
    say(f"reading {arguments.file}")
    adata = _read(arguments)
    calls = None
    if arguments.assigned is None:
        adata, calls = _called(adata, arguments)
    else:
        adata = _labelled(adata, arguments.assigned)
    adata = _filtered(adata, arguments)
    if calls is not None:
        calls.cells["kept"] = calls.cells.index.isin(adata.obs_names)
    table = preprocess.steps(adata)
    for step in table.itertuples(index=False):
        print(f"{step.name}: {step.before:,} -> {step.after:,}\n  {step.rule}", flush=True)
    if arguments.no_fit:
        arguments.output.mkdir(parents=True, exist_ok=True)
        adata.write_h5ad(arguments.output / _PREPARED)
        _write(arguments.output, table, calls)
        print(f"Written to {arguments.output}:")
        _say_files(calls)
        print(f"  {_PREPARED}    the cells that can be fitted", flush=True)
        return
    setup = {c.name: getattr(arguments, c.name, c.default) for c in COLUMNS}
    setup["perturbation_key"] = arguments.assigned or "perturbation"
    setup["guide_key"] = None if calls is None else "guide"
    register(adata, setup)
    try:
        fit_and_report(adata, arguments, table)
    finally:  # also where training was interrupted, or nobody reads what is printed
        if arguments.output.is_dir():
            _write(arguments.output, table, calls)
    _say_files(calls)


def _read(arguments: argparse.Namespace) -> AnnData:
    """Cells, with what tables say of them and of their lanes."""
    from pyrocell.cli.reading import add_labels, read_cells
    from pyrocell.preprocess import Step, read_10x
    from pyrocell.preprocess.reading import GUIDES, split_features
    from pyrocell.preprocess.steps import add_step

    file = arguments.file
    if file.suffix.casefold() in (".h5ad", ".h5mu", ".zarr", ".loom"):
        adata = read_cells(file)
        if "feature_types" in adata.var and (adata.var["feature_types"] == GUIDES).any():
            adata = split_features(adata, file, arguments.batch_key)
        else:
            rule = f"{file}: {adata.n_vars:,} genes"
            adata = add_step(adata, Step("read", rule, adata.n_obs, adata.n_obs))
    else:
        adata = read_10x(file)
    if arguments.labels is not None:
        add_labels(adata, arguments.labels)
    if arguments.lanes is not None:
        _add_lanes(adata, arguments.lanes, arguments.batch_key)
    return adata


def _add_lanes(adata: AnnData, file: Path, key: str | None) -> None:
    """Join a table of lanes to `.obs`, in place."""
    import pandas as pd

    from pyrocell._compat import obs_table

    if key is None or key not in adata.obs:
        raise PyrocellError(f"{file} is of lanes, and there is no column of batches; --batch-key")
    tab = file.suffix in (".tsv", ".txt", ".tab")
    table = _table(file, index_col=0, sep="\t" if tab else ",")
    table.index = table.index.astype(str)
    lanes = obs_table(adata)[key].astype(str)
    missing = sorted(set(lanes) - set(table.index))
    if missing or table.index.has_duplicates:
        raise PyrocellError(
            f'{file} lacks the lane "{missing[0]}"; its first column must name every lane'
            if missing
            else f"{file} names a lane more than once"
        )
    for column in table:
        values = table[column].reindex(lanes).to_numpy()
        adata.obs[column] = pd.Series(values, adata.obs_names)


def _table(file: Path, **options: Any) -> pd.DataFrame:
    import pandas as pd

    try:
        return pd.read_csv(file, **options)
    except Exception as error:
        raise PyrocellError(f"{file} cannot be read as a table: {error}") from error


def _called(adata: AnnData, arguments: argparse.Namespace) -> tuple[AnnData, GuideCalls]:
    """The cells with a label by their guides, and the calls of all."""
    import numpy as np
    import scipy.sparse as sp

    from pyrocell import preprocess
    from pyrocell.preprocess.steps import add_step

    counts, names = _guide_counts(adata, arguments)
    table = None
    if arguments.guides is not None:
        table = _table(arguments.guides, sep=None, engine="python", dtype=str)
    known = adata.uns.get("guides")
    known = known if known is not None and list(known.index) == list(names) else names
    targets = preprocess.guide_targets(
        known, table, genes=adata.var_names, controls=arguments.control_guides
    )
    say(f"calling {len(names):,} guides in {adata.n_obs:,} cells")
    key = arguments.batch_key
    calls = preprocess.assign_guides(
        counts,
        arguments.call,
        names=names,
        cells=adata.obs_names,
        batch=adata.obs[key] if key is not None and key in adata.obs else None,
        depth=np.asarray(sp.csr_matrix(adata.X).sum(1)).ravel(),
        probability=arguments.call_probability,
        min_counts=arguments.call_counts,
    )
    n = calls.cells["call"].value_counts()
    rule = "every guide with "
    if arguments.call == "mixture":
        rule = f"mixture of ambient and own counts, probability of {arguments.call_probability:g}, "
    rule += f"at least {arguments.call_counts or (2 if arguments.call == 'mixture' else 5)} counts"
    rule += f"; none: {n['none']:,}, one: {n['one']:,}, several: {n['several']:,} cells"
    if arguments.call == "mixture":
        right = calls.cells["probability"].mean()
        rule += f"; expected share of cells with all calls right, if the model holds: {right:.1%}"
    of_genes = targets[targets != "control"].nunique()
    rule = (
        f"{len(names):,} guides, of {of_genes:,} genes and {(targets == 'control').sum():,} of "
        f"controls; {rule}"
    )
    having = adata.n_obs - int(n["none"])
    adata = add_step(adata, preprocess.Step("assign guides", rule, adata.n_obs, having))
    calls.guides.insert(1, "gene", targets.loc[calls.guides["guide"]].to_numpy())
    return preprocess.label_cells(adata, calls, targets, multiplets=arguments.multiplets), calls


def _guide_counts(adata: AnnData, arguments: argparse.Namespace) -> tuple[Any, list[str]]:
    """Counts of guides, and their names."""
    import pandas as pd

    from pyrocell._core.messages import join_names

    if "perturbation" in adata.obs:
        raise PyrocellError(
            f'{arguments.file} has a column "perturbation" already; use it by --assigned '
            "perturbation, or rename it to call guides"
        )
    key = arguments.guide_counts
    if key not in adata.obsm:
        found = join_names(adata.obsm) or "nothing"
        raise PyrocellError(
            f'{arguments.file} has no features of type "CRISPR Guide Capture" and no counts of '
            f'guides in .obsm["{key}"] (there is: {found}); name them by --guide-counts, or a '
            "column of labels by --assigned"
        )
    counts = adata.obsm[key]
    if isinstance(counts, pd.DataFrame):
        return counts, [str(name) for name in counts.columns]
    names = adata.uns.get(key)
    names = getattr(names, "index", names)
    if names is None or len(names) != counts.shape[1]:
        raise PyrocellError(
            f'{arguments.file}: .obsm["{key}"] has {counts.shape[1]} columns without names; make '
            f'it a table, or put the names into .uns["{key}"]'
        )
    return counts, [str(name) for name in names]


def _labelled(adata: AnnData, column: str) -> AnnData:
    """The cells that a column labels."""
    from pyrocell._core.messages import did_you_mean
    from pyrocell.preprocess import Step
    from pyrocell.preprocess.steps import add_step

    if column not in adata.obs:
        raise PyrocellError(f'--assigned "{column}" is no column{did_you_mean(column, adata.obs)}')
    label = adata.obs[column]
    kept = (label.notna() & (label.astype(str).str.strip() != "")).to_numpy()
    if not kept.any():
        raise PyrocellError(f'--assigned "{column}" has no label; name another column')
    found = adata[kept].copy()
    rule = f"column {column}; cells without a label are left out"
    return add_step(found, Step("labels", rule, adata.n_obs, found.n_obs))


def _filtered(adata: AnnData, arguments: argparse.Namespace) -> AnnData:
    from pyrocell import preprocess

    key = arguments.batch_key
    if not arguments.no_filter_cells:
        adata = preprocess.filter_cells(
            adata,
            min_counts=arguments.min_counts,
            min_genes=arguments.min_genes,
            max_mito=arguments.max_mito,
            mads=arguments.mads,
            batch_key=key,
        )
    if not arguments.no_filter_genes:
        adata = preprocess.filter_genes(adata, min_cells=arguments.min_cells)
    if not arguments.no_choose_genes:
        labels = adata.obs[arguments.assigned or "perturbation"].astype(str).unique()
        sign = arguments.combination_separator or "\0"
        keep = {part for label in labels for part in label.split(sign)}
        keep = {name for name in keep if not fnmatchcase(name, arguments.control)}
        adata = preprocess.choose_genes(adata, arguments.n_genes, keep=keep, batch_key=key)
    return adata


def _write(directory: Path, steps: pd.DataFrame, calls: GuideCalls | None) -> None:
    """Tables of what was done, and of the guides."""
    steps.to_csv(directory / _STEPS, index=False)
    if calls is not None:
        calls.guides.to_csv(directory / _GUIDES, index=False)
        calls.cells.to_csv(directory / _CELLS, index_label="cell")


def _say_files(calls: GuideCalls | None) -> None:
    print(_CONTENTS if calls is None else f"{_CONTENTS}\n{_CALLS}", flush=True)

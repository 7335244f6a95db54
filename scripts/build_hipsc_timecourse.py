"""Build pyrocell/datasets/hipsc_timecourse.npz from the source distribution of renge 0.0.5 (MIT).

    python scripts/build_hipsc_timecourse.py                    # pip downloads the sdist
    python scripts/build_hipsc_timecourse.py --sdist FILE.tar.gz
    python scripts/build_hipsc_timecourse.py --check FILE.h5ad  # compare the embedded file only

The authors give log1p of sctransform-corrected counts (E), and one-hot knockouts with the day (X).
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

RELEASE = "renge-0.0.5"
SHA256 = "3472ce015cf5eb32e22e474da6e1ceafb18023451ae43614c6f026cf48bf91df"
FOLDER = Path(__file__).resolve().parents[1] / "pyrocell" / "datasets"
TARGET = FOLDER / "hipsc_timecourse.npz"
NOTICE = FOLDER / "hipsc_timecourse.LICENSE"


def download(folder: Path) -> Path:
    """Fetch the source distribution with pip."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "renge"]
    subprocess.run([*command, "--dest", str(folder), "renge==0.0.5"], check=True)
    return folder / f"{RELEASE}.tar.gz"


def read_sdist(path: Path) -> tuple[pd.DataFrame, pd.DataFrame, bytes]:
    """Expression (cells, genes), design (cells, perturbations + 1) and the licence text."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != SHA256:
        raise SystemExit(f"{path}: sha256 {digest}, expected {SHA256}")
    with tarfile.open(path) as archive:

        def member(name: str):
            return archive.extractfile(f"{RELEASE}/{name}")

        expression = pd.read_csv(member("examples/data/E_renge_d2_80.csv"), index_col=0)
        design = pd.read_csv(member("examples/data/X_renge_d2_80.csv"), index_col=0)
        notice = member("LICENSE").read()
    return expression, design, notice


def recover_counts(expression: pd.DataFrame) -> np.ndarray:
    """Integer counts (cells, genes) behind log1p values; fails if they are not integers."""
    scaled = np.expm1(expression.to_numpy())
    counts = np.rint(scaled)
    worst = np.abs(scaled - counts).max()
    if worst > 1e-9 or counts.min() < 0 or counts.max() > 255:
        raise SystemExit(f"expm1(E) is not small integers: worst residue {worst:.1e}")
    return counts.astype(np.uint8)


def compact(expression: pd.DataFrame, design: pd.DataFrame) -> dict[str, np.ndarray]:
    """Arrays of the embedded file: no pickled objects, counts with one row per gene."""
    if not expression.index.equals(design.index):
        raise SystemExit("E and X do not hold the same cells in the same order")
    onehot = design.iloc[:, :-1]
    if not onehot.isin([0, 1]).all(axis=None) or onehot.sum(axis=1).max() > 1:
        raise SystemExit("X is not one-hot")
    label = np.where(onehot.sum(axis=1) == 0, "control", onehot.idxmax(axis=1))
    names, codes = np.unique(label.astype(str), return_inverse=True)
    parts = expression.index.str.extract(r"^(\d)_([ACGT]{16})-1$")
    if parts.isna().any(axis=None):
        raise SystemExit("a cell barcode does not read SAMPLE_SEQUENCE-1")
    return {
        "counts": np.ascontiguousarray(recover_counts(expression).T),
        "genes": expression.columns.to_numpy(dtype="S"),
        "perturbation": codes.astype(np.int8),
        "perturbation_names": names,
        "day": design.iloc[:, -1].to_numpy(dtype=np.uint8),
        "sample": parts[0].to_numpy(dtype=np.uint8),
        "barcode": parts[1].to_numpy(dtype="S16"),
    }


def check(reference: Path) -> None:
    """Compare the embedded screen with a reference .h5ad of the same cells and genes."""
    import anndata as ad

    from pyrocell.datasets import hipsc_timecourse

    ours, theirs = hipsc_timecourse(), ad.read_h5ad(reference)
    if (ours.X != theirs.X).nnz:
        raise SystemExit("counts differ")
    for name in ("obs_names", "var_names"):
        if list(getattr(ours, name)) != list(getattr(theirs, name)):
            raise SystemExit(f"{name} differ")
    for column in ("perturbation", "perturbation_type", "media", "time", "batch"):
        if list(ours.obs[column]) != list(theirs.obs[column]):
            raise SystemExit(f'.obs["{column}"] differs')
    print(f"equal to {reference}: {ours.n_obs} cells x {ours.n_vars} genes, counts and labels")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sdist", type=Path, help="renge-0.0.5.tar.gz, if already at hand")
    parser.add_argument("--check", type=Path, metavar="FILE.h5ad", help="compare, build nothing")
    options = parser.parse_args()
    if options.check:
        return check(options.check)
    with tempfile.TemporaryDirectory() as folder:
        expression, design, notice = read_sdist(options.sdist or download(Path(folder)))
    np.savez_compressed(TARGET, **compact(expression, design))
    NOTICE.write_bytes(notice)
    print(f"{TARGET}: {TARGET.stat().st_size / 1e6:.2f} MB, {len(expression)} cells")


if __name__ == "__main__":
    main()

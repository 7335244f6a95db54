"""Count the type errors of each room of the package; their number may only fall.

python scripts/type_errors.py             fails if a room has more than type_errors.json says
python scripts/type_errors.py --update    writes the present numbers there

The numbers belong to the versions in constraints/python3.11.txt; under another Python it only says
so, since other versions of the libraries are typed otherwise.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
ALLOWED = Path(__file__).with_suffix(".json")
PYTHON = (3, 11)


def found() -> tuple[Counter[str], list[str]]:
    """Errors of each room, and a line for each."""
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--project", str(ROOT)]
    command += ["--pythonpath", sys.executable]  # whatever the environment is called
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    try:
        diagnostics = json.loads(run.stdout)["generalDiagnostics"]
    except ValueError:
        raise SystemExit(f"basedpyright said no JSON: {run.stdout}{run.stderr}") from None
    counts, lines = Counter(), []
    for one in diagnostics:
        if one["severity"] == "error":
            file = Path(one["file"]).relative_to(ROOT)
            counts[file.parts[1].removesuffix(".py")] += 1
            line = one["range"]["start"]["line"] + 1
            lines.append(f"{file}:{line}: {one['message'].splitlines()[0]}")
    return counts, lines


def main() -> None:
    """Compare with what is allowed, or write it."""
    if sys.version_info[:2] != PYTHON:
        print("type errors are counted under Python 3.11 only")
        return
    counts, lines = found()
    if "--update" in sys.argv[1:]:
        ALLOWED.write_text(json.dumps(dict(sorted(counts.items())), indent=1) + "\n")
        print(f"{sum(counts.values())} type errors allowed")
        return
    allowed = Counter(json.loads(ALLOWED.read_text()))
    more, fewer = counts - allowed, allowed - counts
    print(f"type errors: {sum(counts.values())} of {sum(allowed.values())} allowed")
    if more:
        print("\n".join(line for line in lines if Path(line).parts[1].split(".py")[0] in more))
        raise SystemExit(f"more type errors than before: {dict(more)}")
    if fewer:
        raise SystemExit(
            f"fewer type errors than before: {dict(fewer)}; keep it so with "
            "python scripts/type_errors.py --update"
        )


if __name__ == "__main__":
    main()

"""Pages of runs, from the files in their folders.

python -m segformer.pages runs/toy-1                  writes its report.html again
python -m segformer.pages runs/toy-1 runs/toy-2       compares them in comparison.html
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from segformer.files import write_atomically
from segformer.pages.comparison import load_runs, render_comparison
from segformer.pages.record import RunRecord
from segformer.pages.report import REPORT_NAME, render_report
from segformer.training.history import LOG_NAME

COMPARISON_NAME = "comparison.html"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page and name it; the exit status is 1, with one line that says why, if a folder holds no run."""
    options = _parse(arguments)
    try:
        for folder in options.runs:
            check_run(folder)
        if len(options.runs) == 1:
            path, page = options.runs[0] / REPORT_NAME, render_report(RunRecord.load(options.runs[0]))
        else:
            path, page = Path(COMPARISON_NAME), render_comparison(load_runs(options.runs))
        path = options.output or path
        write_atomically(path, page)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(path)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m segformer.pages",
        description="Write the report of a run again, or one page that compares several.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run, such as runs/toy-1")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help=f"page to write; else {REPORT_NAME} in the folder of the only run, {COMPARISON_NAME} here for several",
    )
    return parser.parse_args(arguments)


def check_run(folder: Path) -> None:
    """Raise FileNotFoundError or NotADirectoryError for what is not the folder of a run."""
    if not folder.exists():
        raise FileNotFoundError(f"there is no folder {folder}; name that of a run, such as runs/toy-1")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; name the folder of the run it belongs to")
    if not (folder / LOG_NAME).exists():
        of_a_run = (folder.resolve().parent / LOG_NAME).exists()
        raise FileNotFoundError(
            f"{folder} holds no run (no {LOG_NAME})" + (f"; that is {folder.parent}" if of_a_run else "")
        )


if __name__ == "__main__":
    sys.exit(main())

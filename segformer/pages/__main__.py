"""Pages of runs that are there already, from the files in their folders.

python -m segformer.pages runs/toy-1                  writes its report.html again
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from segformer.pages.report import build_report
from segformer.training.history import LOG_NAME


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page and name it; the exit status is 1, with one line that says why, if a folder holds no run."""
    parser = argparse.ArgumentParser(prog="python -m segformer.pages", description="Write the report of a run again.")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, such as runs/toy-1")
    options = parser.parse_args(arguments)
    try:
        check_run(options.run)
        print(build_report(options.run))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


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

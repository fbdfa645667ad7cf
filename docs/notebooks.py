"""Run the notebook, and keep what it shows in both of its languages.

    python docs/notebooks.py

Their code cells are the same, so guide.ko.ipynb gets what guide.ipynb gave. Needs the test extra.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

DOCS = Path(__file__).parent
ENGLISH, KOREAN = DOCS / "guide.ipynb", DOCS / "guide.ko.ipynb"


def code_cells(notebook: Any) -> list[Any]:
    """The cells that run, in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def execute(notebook: Any, folder: Path) -> None:
    """Run every cell with ``folder`` as its place. Raises CellExecutionError where one fails."""
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources, record_timing=False).execute()


def tidied(output: Any) -> Any:
    """An output with the smaller of the two forms that a picture comes in."""
    forms = [form for form in ("image/png", "image/jpeg") if form in output.get("data", {})]
    for form in sorted(forms, key=lambda form: len(output.data[form]))[1:]:
        del output.data[form]
    return output


def main() -> None:
    """Rewrite both in place."""
    english, korean = (nbformat.read(path, as_version=4) for path in (ENGLISH, KOREAN))
    execute(english, DOCS)
    for cell, twin in zip(code_cells(english), code_cells(korean), strict=True):
        cell.outputs = [tidied(each) for each in cell.outputs if each.get("name") != "stderr"]
        twin.outputs, twin.execution_count = cell.outputs, cell.execution_count
    english.metadata.language_info = korean.metadata.language_info = {"name": "python"}
    nbformat.write(english, ENGLISH)
    nbformat.write(korean, KOREAN)


if __name__ == "__main__":
    main()

"""The notebooks as their readers run them, and the two languages beside each other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parent.parent
NOTEBOOKS = [ROOT / "docs/guide.ipynb", ROOT / "docs/guide.ko.ipynb"]
on_both = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)


def _read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def _cells(notebook: Any, kind: str) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == kind]


def _printed(notebook: Any) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


def _run(path: Path, tmp_path_factory: pytest.TempPathFactory, steps: int = 60) -> Any:
    """A notebook after all of its cells ran, with fewer steps, in a clone of its own and without the Hub."""
    clone = tmp_path_factory.mktemp("clone")
    (clone / "docs").mkdir()
    for name in ("train.py", "segformer", "data"):
        (clone / name).symlink_to(ROOT / name)
    notebook = _read(path)
    for cell in notebook.cells:
        cell.source = cell.source.replace(
            "steps, batch_size, warmup_steps = 180,", f"steps, batch_size, warmup_steps = {steps},"
        ).replace("if step % 60 == 0 or", f"if step % {steps // 2} == 0 or")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("JUPYTER_RUNTIME_DIR", str(clone / "jupyter"))
        patch.setenv("IPYTHONDIR", str(clone / "ipython"))
        resources = {"metadata": {"path": str(clone / "docs")}}
        nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    return notebook


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The English notebook."""
    return _run(NOTEBOOKS[0], tmp_path_factory)


def test_the_model_of_the_notebook_learns(ran: Any) -> None:
    steps = re.findall(r"step \d+: loss ([\d.]+), mean IoU ([\d.]+)", _printed(ran))
    losses, scores = zip(*((float(loss), float(score)) for loss, score in steps), strict=True)
    assert losses[-1] < 3  # from 5, the logarithm of the number of classes
    assert scores[-1] > max(0.12, scores[0])


def test_the_step_of_the_notebook_has_the_loss_of_train_step(ran: Any) -> None:
    here, there = re.findall(r"loss ([\d.]+) here, ([\d.]+) in train_step", _printed(ran))[0]
    assert float(here) == pytest.approx(float(there), abs=2e-6)


def test_prediction_by_hand_is_that_of_the_segmenter(ran: Any) -> None:
    (share,) = re.findall(r"([\d.]+)% of them as the segmenter", _printed(ran))
    assert float(share) > 99.9  # logits that are equal to the last bit but one may fall either way


def test_the_other_language_runs_through_too(ran: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = _run(NOTEBOOKS[1], tmp_path_factory, steps=2)  # for its code is the same
    assert re.findall(r"loss ([\d.]+) here", _printed(other))
    kinds = [
        [sorted({output.output_type for output in cell.get("outputs", [])}) for cell in each.cells]
        for each in (ran, other)
    ]
    assert kinds[0] == kinds[1]


def test_the_notebook_shows_pictures(ran: Any) -> None:
    data = [output.get("data", {}) for cell in ran.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in each for each in data) >= 6


def test_both_notebooks_have_the_same_code() -> None:
    english, korean = (_cells(_read(path), "code") for path in NOTEBOOKS)
    assert korean == english


def test_both_notebooks_lead_to_the_same_files() -> None:
    english, korean = (
        re.findall(r"\]\((\.\./[^)]+\.py)\)", "\n".join(_cells(_read(path), "markdown"))) for path in NOTEBOOKS
    )
    assert len(english) > 10
    assert sorted(korean) == sorted(english)


@on_both
def test_links_of_the_notebook_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(((?!http)[^)]+)\)", "\n".join(_cells(_read(path), "markdown")))
    assert [link for link in links if not (path.parent / link).exists()] == []


@on_both
def test_what_is_stored_with_the_notebook_is_small_and_ran_through(path: Path) -> None:
    assert path.stat().st_size < 2**20
    cells = [cell for cell in _read(path).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert [output for cell in cells for output in cell.outputs if output.output_type == "error"] == []


def test_both_notebooks_show_the_same() -> None:
    english, korean = ([cell.get("outputs") for cell in _read(path).cells] for path in NOTEBOOKS)
    assert korean == english

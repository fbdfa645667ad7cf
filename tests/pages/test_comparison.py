"""The comparison of runs: what differs is told, what is equal is not, and no two scores are compared in silence."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markup import Element, Markup
from run_folders import CLASS_NAMES, HOSTILE, final_scores, write_log, write_run

from segformer.pages.comparison import MOST_RUNS, load_runs, render_comparison

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


def change_json(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def run(folder: Path, last_step: int = 1000, ious: list[float | None] | None = None, **settings: Any) -> Path:
    """A run that was scored on rows of their own, with these settings and scores of its classes."""
    write_run(folder, last_step)
    held = json.loads((folder / "run.json").read_text())["settings"]
    change_json(folder / "run.json", settings=held | {"eval_split": "validation", "output_dir": str(folder)} | settings)
    if ious:
        mean = float(np.mean([iou for iou in ious if iou is not None]))
        change_json(folder / "eval_results.json", eval_per_category_iou=ious, eval_mean_iou=mean)
    return folder


IOUS = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.0, None]
OTHER = [0.85, 0.8, 0.9, 0.65, None, 0.3, 0.0, None]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    return [
        run(root / "first", 1000, IOUS, learning_rate=6e-5),
        run(root / "second", 1500, OTHER, learning_rate=3e-4, amp="bf16"),
    ]


@pytest.fixture(scope="module")
def page(folders: list[Path]) -> Markup:
    return Markup(render_comparison(load_runs(folders)))


def compared(*folders: Path) -> Markup:
    return Markup(render_comparison(load_runs(folders)))


def rows(page: Markup, kind: str) -> list[Element]:
    """The rows below the heading of a table."""
    inside, found = False, []
    for element in page.elements:
        if element.tag == "table":
            inside = kind in element.attributes.get("class", "").split()
        elif inside and element.tag == "tr" and "thead" not in element.parents:
            found.append(element)
    return found


def curves(page: Markup) -> dict[str, list[dict[str, Any]]]:
    return json.loads(page.one("script", id="data").text)["charts"]


def test_a_comparison_is_well_formed_and_its_references_meet(page: Markup) -> None:
    assert page.faults == []
    ids = [element.attributes["id"] for element in page.elements if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    for name in ("for", "aria-labelledby"):
        assert {element.attributes[name] for element in page.elements if name in element.attributes} <= set(ids)


def test_every_chart_has_a_line_for_every_run(page: Markup) -> None:
    told = curves(page)
    assert list(told) == ["loss", "eval_loss", "eval_mean_iou", "learning_rate"]
    assert all([curve["name"] for curve in lines] == ["first", "second"] for lines in told.values())
    assert [curve["steps"][-1] for curve in told["eval_loss"]] == [1000, 1500]
    assert [curve["texts"][-1] for curve in told["eval_mean_iou"]] == ["0.6000", "0.6000"]


def test_lines_of_a_chart_and_of_its_legend_are_drawn_alike(page: Markup) -> None:
    drawn = [line.attributes["class"].split()[1] for line in page.all("path", class_="line")]
    legend = [sample.attributes["class"].split()[1] for sample in page.all("svg", class_="dash")]
    assert drawn == ["run-1", "run-2"] * 4
    assert legend == ["run-1", "run-2"] * 5  # and beside the names of the runs


def test_every_line_but_the_first_has_a_pattern_of_its_own() -> None:
    style = (Path(__file__).parents[2] / "segformer/pages/web/comparison.css").read_text()
    lines = [line for line in style.splitlines() if line.startswith(".run-")]
    patterns = [line.partition("stroke-dasharray:")[2].partition(";")[0].strip() for line in lines]
    assert len(patterns) == len(set(patterns)) == MOST_RUNS


def test_numbers_stand_side_by_side_with_the_difference_of_the_scores(page: Markup) -> None:
    first, second = rows(page, "runs")
    assert first.text.split()[:3] == ["first", "0.557", "0.900"]
    assert second.text.split()[:4] == ["second", "0.583", "+0.026", "0.900"]
    assert "1,000" in first.text
    assert "1,500" in second.text


def test_settings_that_differ_are_told_and_those_that_are_equal_are_not(page: Markup) -> None:
    told = [row.text.split() for row in rows(page, "differing")]
    assert told == [["amp", DASH, "bf16"], ["learning_rate", "6e-05", "0.0003"]]


def test_a_setting_that_one_run_did_not_record_is_said_to_be_so(tmp_path: Path) -> None:
    page = compared(run(tmp_path / "a"), run(tmp_path / "b", seed=1))
    assert [row.text.split() for row in rows(page, "differing")] == [["seed", "not", "recorded", "1"]]


def test_runs_of_equal_settings_say_so(tmp_path: Path) -> None:
    page = compared(run(tmp_path / "a"), run(tmp_path / "b"))
    assert [each.text for each in page.all("p", class_="nothing")] == ["All settings are the same."]


def test_classes_that_gained_come_before_those_that_lost(page: Markup) -> None:
    told = [row.text.split() for row in rows(page, "changes")]
    assert told == [
        ["sky", "0.700", "+0.200"],
        ["tree", "0.600", "+0.050"],
        ["floor", "0.800", "0.000"],
        ["wall", "0.900", f"{MINUS}0.050"],
        ["rug", "0.400", f"{MINUS}0.100"],
    ]
    assert page.one("ul", class_="tally").text.strip() == "second: 2 gained, 2 lost against first"


def test_a_change_too_small_to_be_shown_is_none(tmp_path: Path) -> None:
    page = compared(run(tmp_path / "a", ious=IOUS), run(tmp_path / "b", ious=[0.8996, *IOUS[1:]]))
    assert page.one("ul", class_="tally").text.strip() == "b: 0 gained, 0 lost against a"
    assert page.all("td", class_="lost") == []


def test_a_class_that_one_of_three_runs_did_not_score_comes_last(tmp_path: Path) -> None:
    page = compared(run(tmp_path / "a", ious=IOUS), run(tmp_path / "b", ious=OTHER), run(tmp_path / "c", ious=IOUS))
    assert rows(page, "changes")[-1].text.split() == ["street", "lamp", "0.500", DASH, "0.000"]


def test_classes_are_compared_by_their_names(tmp_path: Path) -> None:
    one, other = run(tmp_path / "a", ious=IOUS), run(tmp_path / "b", ious=IOUS[::-1])
    shares = json.loads((other / "eval_results.json").read_text())["eval_per_category_share"]
    change_json(other / "run.json", class_names=CLASS_NAMES[::-1])
    change_json(other / "eval_results.json", eval_per_category_share=shares[::-1])
    assert {row.text.split()[-1] for row in rows(compared(one, other), "changes")} == {"0.000"}


def test_runs_that_share_no_class_say_so(tmp_path: Path) -> None:
    one, other = run(tmp_path / "a"), run(tmp_path / "b")
    change_json(other / "run.json", class_names=[f"other {k}" for k in range(8)])
    said = [each.text for each in compared(one, other).all("p", class_="nothing")]
    assert "No class was scored both in a and in another run." in said


def test_scores_that_are_measured_alike_need_no_warning(page: Markup) -> None:
    assert page.all("p", class_="warning") == []


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"dataset": "other"}, "dataset"),
        ({"eval_resolution": "original"}, "eval_resolution"),
        ({"eval_flip": True}, "eval_flip"),
        ({"eval_split": "test"}, "the rows evaluated"),
        ({"eval_split": None, "split": "train", "test_size": 0.2, "seed": 1}, "the rows evaluated"),
        ({"binary_masks": True}, "what labels mean"),
    ],
)
def test_scores_that_are_measured_otherwise_are_said_to_be(tmp_path: Path, settings: dict[str, Any], what: str) -> None:
    page = compared(run(tmp_path / "a"), run(tmp_path / "b", **settings))
    assert what in page.one("p", class_="warning").text


@pytest.mark.parametrize(
    ("first", "second", "is_warned"),
    [
        ({"seed": 1}, {"seed": 2}, True),  # other rows are held out
        ({"seed": 1}, {"seed": 1}, False),
        ({"seed": 1, "scored_rows": "validation"}, {"seed": 2, "scored_rows": "validation"}, False),
        ({"eval_split": "validation", "scored_rows": "validation"}, {"scored_rows": "validation"}, False),
        ({"scored_rows": "validation"}, {"scored_rows": "test"}, True),
    ],
)
def test_rows_are_the_same_by_what_was_scored_and_not_by_how_it_was_chosen(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], is_warned: bool
) -> None:
    folders = []
    for name, settings in (("a", first), ("b", second)):
        scored = settings.pop("scored_rows", "")
        chosen = {"eval_split": "auto", "split": "train", "test_size": 0.2} | settings
        folders.append(run(tmp_path / name, **chosen))
        change_json(folders[-1] / "run.json", scored_rows=scored)
    told = [each.text for each in compared(*folders).all("p", class_="warning")]
    assert ["the rows evaluated" in text for text in told] == [True] * is_warned


@pytest.mark.parametrize(("mode", "is_warned"), [("window", True), ("original", False)])
def test_windows_make_another_measure_where_there_are_any(tmp_path: Path, mode: str, is_warned: bool) -> None:
    folders = [run(tmp_path / name, eval_resolution=mode, eval_window=size) for name, size in (("a", 64), ("b", 32))]
    told = [each.text for each in compared(*folders).all("p", class_="warning")]
    assert ["eval_window" in text for text in told] == [True] * is_warned


def test_other_classes_make_another_measure(tmp_path: Path) -> None:
    one, other = run(tmp_path / "a"), run(tmp_path / "b")
    change_json(other / "run.json", class_names=[*CLASS_NAMES[:7], "new"])
    assert "their classes" in compared(one, other).one("p", class_="warning").text


def test_an_evaluation_is_compared_by_its_scores_and_has_no_line(tmp_path: Path) -> None:
    trained, scored = run(tmp_path / "a"), run(tmp_path / "b", eval_only=True, eval_split=None, split="validation")
    (scored / "log.jsonl").write_text(json.dumps({"step": 0, **final_scores(1, 1)}))
    change_json(scored / "eval_results.json", step=0)
    page = compared(trained, scored)
    assert {curve["name"] for lines in curves(page).values() for curve in lines} == {"a"}
    assert rows(page, "runs")[1].text.split()[:3] == ["b", "0.600", "0.000"]
    assert page.all("p", class_="warning") == []  # scored on the rows that the other was evaluated on


def test_settings_that_an_evaluation_makes_no_use_of_are_no_difference(tmp_path: Path) -> None:
    trained = [run(tmp_path / name, learning_rate=rate, amp="off") for name, rate in (("a", 1), ("b", 2))]
    scored = run(tmp_path / "c", eval_only=True, learning_rate=3, weight_decay=4, amp="bf16")
    told = [row.text.split() for row in rows(compared(*trained, scored), "differing")]
    assert told == [
        ["amp", "off", "off", "bf16"],
        ["learning_rate", "1", "2", "not", "used"],
        ["eval_only", "not", "recorded", "not", "recorded", "True"],
    ]


def test_two_evaluations_have_no_curves_at_all(tmp_path: Path) -> None:
    folders = [run(tmp_path / name, eval_only=True) for name in "ab"]
    assert compared(*folders).all("figure") == []


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    runs = load_runs([run(tmp_path / "a" / "run"), run(tmp_path / "b" / "run")])
    assert list(runs) == ["a/run", "b/run"]


def test_a_long_run_is_compared_by_its_running_mean(tmp_path: Path) -> None:
    write_log(tmp_path / "a", 5000)
    write_log(tmp_path / "b", 5000)
    page = compared(tmp_path / "a", tmp_path / "b")
    assert [line.attributes["class"] for line in page.all("path", class_="line")][:2] == ["line run-1", "line run-2"]


def test_every_run_tells_where_its_weights_come_from(folders: list[Path]) -> None:
    change_json(folders[1] / "run.json", provenance={"checkpoint": "nvidia/mit-b0", "weights_sha256": "f" * 64})
    about = [each.text for each in compared(*folders).all("dl", class_="facts")]
    assert len(about) == 2
    assert "nvidia/mit-b0, SHA-256 ffffffffffffffff" in about[1]


def test_hostile_texts_add_no_element_to_a_comparison(tmp_path: Path, page: Markup) -> None:
    names = [run(tmp_path / f"<b>{k}", ious=IOUS if k else OTHER) for k in range(2)]
    for k, folder in enumerate(names):
        held = json.loads((folder / "run.json").read_text())["settings"]
        settings = held | {name: f"{k}{name}" for name in HOSTILE}
        change_json(folder / "run.json", class_names=HOSTILE, settings=settings)
    hostile = compared(*names)
    assert hostile.faults == []
    kinds = ("script", "style", "img", "figure", "table", "section", "input", "button", "b")
    assert {tag: len(hostile.all(tag)) for tag in kinds} == {tag: len(page.all(tag)) for tag in kinds}


def test_a_run_named_twice_is_refused(folders: list[Path]) -> None:
    with pytest.raises(ValueError, match="first is named twice"):
        load_runs([*folders, folders[0]])


def test_more_runs_than_can_be_told_apart_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="7 runs; at most 6"):
        load_runs([tmp_path / str(k) for k in range(MOST_RUNS + 1)])

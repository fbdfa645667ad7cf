"""The report: made from the run's folder alone, at any moment of the run, true to it, and safe whatever it holds."""

import base64
import io
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markup import Element, Markup
from PIL import Image
from run_folders import CLASS_NAMES, HOSTILE, final_scores, prediction_at, scene, write_log, write_run, write_samples

from segformer.pages.page import distinct
from segformer.pages.record import RunRecord
from segformer.pages.report import build_report, render_report
from segformer.pages.samples import NO_CLASS, ReportSample
from segformer.pictures import palette


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "toy-1")


@pytest.fixture(scope="module")
def report(folder: Path) -> Markup:
    return Markup(render_report(RunRecord.load(folder)))


def data_of(markup: Markup) -> dict[str, Any]:
    return json.loads(markup.one("script", id="data").text)


def class_rows(markup: Markup) -> list[Element]:
    return [row for row in markup.all("tr") if "data-name" in row.attributes]


def opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


# From a folder


def test_the_same_folder_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(folder, tmp_path / "elsewhere" / folder.name)
    first = build_report(copied).read_bytes()
    assert build_report(copied).read_bytes() == first
    assert build_report(folder).read_bytes() == first
    assert list(copied.glob("*.unfinished")) == []


def test_a_report_adds_one_file_to_its_folder(folder: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(folder, tmp_path / "run")
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file() and path.name != "report.html"}
    assert build_report(copied) == copied / "report.html"
    after = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file() and path.name != "report.html"}
    assert after == before


PIECES = [
    "log.jsonl",
    "eval_results.json",
    "run.json",
    "samples",
    "samples/0",
    "samples/1/truth.png",
    "samples/names.json",
]


@pytest.mark.parametrize("piece", PIECES)
def test_a_missing_piece_leaves_the_rest(folder: Path, tmp_path: Path, piece: str) -> None:
    run = shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(run / piece) if (run / piece).is_dir() else (run / piece).unlink()
    markup = Markup(build_report(run).read_text(encoding="utf-8"))
    assert markup.faults == []
    assert (markup.all("figure", class_="chart") == []) == (piece == "log.jsonl")
    assert len(class_rows(markup)) == 7
    expected = {"samples": 0, "samples/0": 1, "samples/1/truth.png": 1}.get(piece, 2)
    assert len(markup.all("article", class_="sample")) == expected


@pytest.mark.parametrize("size", [0, 1, 40, 400])
@pytest.mark.parametrize("piece", ["log.jsonl", "eval_results.json", "run.json", "samples/0/photo.jpg"])
def test_a_piece_that_breaks_off_leaves_the_rest(folder: Path, tmp_path: Path, piece: str, size: int) -> None:
    run = shutil.copytree(folder, tmp_path / "run")
    (run / piece).write_bytes((run / piece).read_bytes()[:size])
    assert Markup(build_report(run).read_text(encoding="utf-8")).faults == []


def test_an_empty_folder_gives_a_page_that_says_so(tmp_path: Path) -> None:
    markup = Markup(build_report(tmp_path).read_text(encoding="utf-8"))
    assert markup.faults == []
    said = [paragraph.text for paragraph in markup.all("p", class_="nothing")]
    assert said == [
        "Nothing has been logged yet.",
        "No samples have been saved yet.",
        "No evaluation has been logged yet.",
    ]


def test_a_run_is_told_before_its_first_evaluation(tmp_path: Path) -> None:
    write_log(tmp_path, 50, finished=False)
    write_samples(tmp_path, [], 100)
    markup = Markup(build_report(tmp_path).read_text(encoding="utf-8"))
    assert markup.faults == []
    assert [figure.attributes["data-chart"] for figure in markup.all("figure", class_="chart")] == [
        "loss",
        "rate",
        "norm",
    ]
    assert len(markup.all("img")) == 4


# Of an evaluation alone


def evaluated(folder: Path) -> Path:
    """A folder as train.py --eval-only leaves it: scores and samples of step 0 and nothing of any training."""
    write_run(folder)
    about = json.loads((folder / "run.json").read_text())
    about |= {"train_images": 0, "settings": about["settings"] | {"eval_only": True, "checkpoint": "runs/toy-1"}}
    scores = {"step": 0, **final_scores(1, 1)}
    (folder / "run.json").write_text(json.dumps(about))
    (folder / "log.jsonl").write_text(json.dumps(scores) + "\n")
    (folder / "eval_results.json").write_text(json.dumps(scores))
    shutil.rmtree(folder / "samples")
    write_samples(folder, [0], 1)
    return folder


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Markup:
    return Markup(render_report(RunRecord.load(evaluated(tmp_path_factory.mktemp("runs") / "scored"))))


def test_the_report_of_an_evaluation_says_what_it_is(evaluation: Markup, report: Markup) -> None:
    assert evaluation.faults == []
    assert evaluation.one("p", class_="kicker").text == "Evaluation report"
    assert evaluation.one("title").text == "scored: evaluation report"
    assert report.one("p", class_="kicker").text == "Training report"
    assert report.one("title").text == "toy-1: training report"


def test_the_report_of_an_evaluation_speaks_of_no_step_and_no_training(evaluation: Markup) -> None:
    assert evaluation.all("section", aria_labelledby="curves") == []
    assert evaluation.all("figure", class_="chart") == []
    assert evaluation.all("input", id="time") == []
    said = " ".join([evaluation.one("header").text, evaluation.one("main").text])
    assert not re.search(r"\bsteps?\b|to train on|training", said.partition("Settings")[0], re.IGNORECASE)
    assert not any("step" in image.attributes["alt"] for image in evaluation.all("img"))


def test_the_report_of_an_evaluation_shows_scores_samples_and_classes(evaluation: Markup) -> None:
    assert "0.600" in evaluation.one("dl", class_="headline").text
    assert len(class_rows(evaluation)) == 7
    assert len(evaluation.all("img", class_="prediction")) == 2


# Size


def test_a_log_of_100000_steps_makes_a_small_page(tmp_path: Path) -> None:
    write_log(tmp_path, 100_000, every=1, eval_every=5000)
    path = build_report(tmp_path)
    assert path.stat().st_size < 350_000
    charts = data_of(Markup(path.read_text(encoding="utf-8")))["charts"]
    assert all(len(curve["steps"]) <= 1000 for curves in charts.values() for curve in curves)


def test_thousands_of_evaluations_make_a_small_table(tmp_path: Path) -> None:
    write_log(tmp_path, 60_000, every=20, eval_every=20)
    path = build_report(tmp_path)
    markup = Markup(path.read_text(encoding="utf-8"))
    assert path.stat().st_size < 400_000
    assert "200 of 3,000 evaluations as a table" in [each.text for each in markup.all("summary")]
    steps = [head.text for head in markup.all("th", scope="row") if head.text.replace(",", "").isdecimal()]
    assert (len(steps), steps[0], steps[-1]) == (200, "20", "60,000")
    assert markup.all("circle") == []


def test_four_photos_at_twelve_steps_make_a_page_to_mail(tmp_path: Path) -> None:
    generator, steps = np.random.default_rng(0), list(range(100, 1300, 100))
    write_log(tmp_path, 1200)
    samples = []
    for number in range(4):
        smooth = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        photo = Image.fromarray(smooth).resize((1600, 1200), Image.Resampling.BICUBIC)
        truth = scene(number, 512, 512)
        samples.append(ReportSample("a", photo, truth, {step: prediction_at(truth, step, 1200) for step in steps}))
    record = RunRecord("run", samples=samples, class_names=CLASS_NAMES)
    assert len(render_report(record)) < 1_500_000


# Safe


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Markup:
    record = RunRecord.load(write_run(tmp_path_factory.mktemp("runs"), class_names=HOSTILE))
    samples = [ReportSample(HOSTILE[0], each.photo, each.truth, each.predictions) for each in record.samples]
    settings = {name: name for name in HOSTILE} | dict.fromkeys(("recipe", "dataset", "checkpoint"), HOSTILE[2])
    about = type(record.about)(settings, HOSTILE, HOSTILE[1])
    return Markup(render_report(RunRecord(HOSTILE[0], record.history, record.results, HOSTILE, samples, about)))


def test_hostile_texts_add_no_element_to_a_report(hostile: Markup, report: Markup) -> None:
    assert hostile.faults == []
    kinds = ("script", "style", "img", "figure", "table", "section", "input", "button")
    assert {tag: len(hostile.all(tag)) for tag in kinds} == {tag: len(report.all(tag)) for tag in kinds}
    assert {name for element in hostile.elements for name in element.attributes if name.startswith("on")} == set()


def test_hostile_class_names_stand_in_a_report_as_they_are(hostile: Markup) -> None:
    rows = class_rows(hostile)
    assert {row.attributes["data-name"] for row in rows} == set(HOSTILE[:7])
    assert set(data_of(hostile)["classes"].values()) == set(HOSTILE)
    assert all(name in row.text for row in rows for name in [row.attributes["data-name"]])


def test_a_log_of_nothing_but_nan_makes_a_page(tmp_path: Path) -> None:
    keys = ["loss", "grad_norm", "learning_rate", "epoch", *final_scores(1, 1)]
    values = [None, math.nan, math.inf, "text", [], [None], {}, True]
    entries = [{"step": step, **dict.fromkeys(keys, value)} for step, value in enumerate(values)]
    (tmp_path / "log.jsonl").write_text("\n".join(json.dumps(entry) for entry in entries))
    markup = Markup(build_report(tmp_path).read_text(encoding="utf-8"))
    assert markup.faults == []
    assert markup.all("figure", class_="chart") == []
    assert not re.search(r"\b(nan|inf)\b", markup.one("body").text, re.IGNORECASE)


# True


def test_charts_tell_the_log(report: Markup) -> None:
    charts = data_of(report)["charts"]
    assert list(charts) == ["loss", "scores", "rate", "norm"]
    training, evaluation = charts["loss"]
    assert training["steps"] == list(range(10, 1001, 10))
    assert evaluation["steps"] == list(range(100, 1001, 100))
    assert evaluation["texts"][-1] == "0.5000"
    assert [curve["texts"][-1] for curve in charts["scores"]] == ["0.6000", "0.9000"]


def test_a_long_log_shows_the_running_mean_before_its_entries(tmp_path: Path) -> None:
    write_log(tmp_path, 5000)
    legend = [item.text for item in Markup(build_report(tmp_path).read_text()).all("li")]
    assert [text.split()[0] for text in legend[:3]] == ["training", "its", "evaluation"]


def test_classes_come_best_first_with_their_scores_and_shares(report: Markup) -> None:
    rows = class_rows(report)
    assert [row.attributes["data-name"] for row in rows] == CLASS_NAMES[:7]
    assert rows[1].text.split() == ["floor", "0.850", "0.550", "30.0", "%"]
    dash = "\N{EN DASH}"
    assert rows[6].text.split() == ["only", "predicted", "0.000", dash, "0.0", "%"]


def test_classes_that_are_not_there_stand_apart(report: Markup) -> None:
    absent = report.one("details", class_="absent")
    assert "1 class occurs in neither labels nor predictions" in absent.text
    assert "never there" in absent.text


def test_without_shares_there_is_no_column_of_them(tmp_path: Path) -> None:
    scores = final_scores(10, 10)
    del scores["eval_per_category_share"]
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 10, **scores}))
    markup = Markup(build_report(tmp_path).read_text())
    assert markup.all("th", data_sort="share") == []
    assert class_rows(markup)[1].text.split() == ["class", "1", "0.850", "0.550"]


def test_boundaries_and_sizes_are_told_where_they_were_scored(tmp_path: Path, report: Markup) -> None:
    details = {"eval_mean_boundary_iou": 0.45678, "eval_per_category_boundary_iou": [0.4, 0.5, None] + [0.3] * 5}
    sizes = {"eval_mean_iou_small": 0.1234, "eval_mean_iou_medium": None, "eval_mean_iou_large": 0.8}
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 10, **final_scores(10, 10), **details, **sizes}))
    markup = Markup(build_report(tmp_path).read_text())
    assert "0.457boundary IoU" in markup.one("dl", class_="headline").text
    dash = "\N{EN DASH}"
    facts = markup.one("dl", class_="facts").text
    assert f"0.800 where a class covers 10 % of a photo or more, {dash} where it covers 1 to 10 %, 0.123" in facts
    assert class_rows(markup)[1].text.split() == ["class", "1", "0.850", "0.500", "0.550", "30.0", "%"]
    assert report.all("th", data_sort="boundary_iou") == []
    assert "By size" not in report.one("dl", class_="facts").text


def test_lists_of_another_length_than_the_names_do_not_shift_a_class(tmp_path: Path) -> None:
    results = {"eval_per_category_iou": [0.1, 0.9], "eval_per_category_accuracy": [0.5]}
    markup = Markup(render_report(RunRecord("run", results=results, class_names=["a", "b", "c"])))
    assert [row.text.split()[:2] for row in class_rows(markup)] == [["b", "0.900"], ["a", "0.100"]]
    assert markup.one("details", class_="absent").text.count("c") >= 1


def test_samples_show_photo_truth_and_every_prediction(folder: Path, report: Markup) -> None:
    colours = distinct(palette(len(CLASS_NAMES)))
    steps = data_of(report)["sampleSteps"]
    assert steps == [200, 500, 1000]
    black = np.zeros((256 - len(colours), 3), np.uint8)
    expected = [
        np.vstack([colours, black])[prediction_at(scene(number), step, 1000)] for number in (0, 1) for step in steps
    ]
    shown = [
        np.asarray(opened(image.attributes["src"]).convert("RGB")) for image in report.all("img", class_="prediction")
    ]
    assert [np.array_equal(a, b) for a, b in zip(shown, expected, strict=True)] == [True] * 6
    truths = [np.asarray(opened(image.attributes["src"]).convert("RGB")) for image in report.all("img", class_="truth")]
    assert np.array_equal(truths[1], np.vstack([colours, black])[scene(1)])
    assert len(report.all("img", class_="photo")) == 2


def test_mistakes_are_where_a_labelled_pixel_is_wrong(report: Markup) -> None:
    truth = scene(0)
    prediction = prediction_at(truth, 200, 1000)
    marks = np.asarray(opened(report.all("img", class_="mistakes")[0].attributes["src"]).convert("RGBA"))
    assert np.array_equal(marks[..., 3] == 255, (truth != NO_CLASS) & (truth != prediction))
    assert np.array_equal(marks[..., 3] == 0, (truth != NO_CLASS) & (truth == prediction))
    right = (truth == prediction)[truth != NO_CLASS].mean()
    assert f"{100 * right:.1f} % right" in report.all("img", class_="prediction")[0].attributes["alt"]


def test_the_step_of_the_scores_is_the_one_shown_first(folder: Path, tmp_path: Path) -> None:
    run = shutil.copytree(folder, tmp_path / "run")
    for step, place in ((500, 1), (200, 0), (1000, 2)):  # as with load_best_model_at_end
        (run / "eval_results.json").write_text(json.dumps({"step": step, **final_scores(step, 1000)}))
        markup = Markup(build_report(run).read_text())
        dated = [figure.attributes for figure in markup.all("figure") if "data-step" in figure.attributes]
        assert {figure["data-step"] for figure in dated if "hidden" not in figure} == {str(step)}
        assert data_of(markup)["shown"] == place


def test_steps_of_an_attempt_that_was_gone_back_on_are_not_shown(folder: Path, tmp_path: Path) -> None:
    run = shutil.copytree(folder, tmp_path / "run")
    write_log(run, 600, finished=False)
    assert data_of(Markup(build_report(run).read_text()))["sampleSteps"] == [200, 500]


def test_settings_are_told_whole(report: Markup) -> None:
    told = dict(row.text.split(maxsplit=1) for row in report.all("tr") if len(row.text.split()) == 2)
    assert told["recipe"].strip() == "toy"
    assert told["checkpoint"].strip() == "\N{EN DASH}"


# For everybody


def test_markup_is_well_formed_and_its_references_meet(report: Markup) -> None:
    assert report.faults == []
    ids = [element.attributes["id"] for element in report.elements if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    for name in ("for", "aria-labelledby"):
        assert {element.attributes[name] for element in report.elements if name in element.attributes} <= set(ids)


def test_every_picture_has_a_text_and_every_field_a_label(report: Markup) -> None:
    assert all(image.attributes["alt"] for image in report.all("img"))
    labelled = {label.attributes["for"] for label in report.all("label")}
    assert {field.attributes["id"] for field in report.all("input")} == labelled
    assert all("scope" in heading.attributes for heading in report.all("th"))


def test_headings_go_down_one_level_at_a_time(report: Markup) -> None:
    levels = [int(element.tag[1]) for element in report.elements if re.fullmatch("h[1-6]", element.tag)]
    assert levels.count(1) == 1
    assert max(np.diff(levels)) == 1

"""``python -m benchmarks``: a cut loses nothing, a failure ends nothing, what is left out is named, rows are real."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from functools import partial
from pathlib import Path
from typing import Any

import pieces
import pytest

from benchmarks import page, rows, tables
from benchmarks.__main__ import Results, measure_rows, name_of
from benchmarks.rows import Goal, Row, Scope
from benchmarks.shards import scene_shards
from benchmarks.worker import Failed, Worker, alone

ROOT = Path(__file__).parents[2]
CARD = {"device": "A Card 9000 (TM)", "threads": 2, "torch": "2.14", "date": "2026-01-01", "commit": "abc"}


def row(name: str, work: Any, seconds: float = 1, **more: Any) -> Row:
    return Row(name, "step", seconds, work, **more)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a machine of which some rows fail, one does not end, and the time does not suffice for the last."""
    folder = tmp_path_factory.mktemp("results")
    work = [
        row("first", partial(pieces.quick, 2.0), goals=(Goal("ratio", 1.5, 4.0), Goal("memory_ratio", 0.5, 0.2))),
        row("out of memory", pieces.raising),
        row("unequal", pieces.refused, goals=(Goal("ratio", 3.0, 6.0),)),
        row("broken", pieces.dying),
        row("slow & steady", partial(pieces.quick, 0.5), goals=(Goal("ratio", 1.5, 4.0),)),
        row("endless", pieces.endless),
        row("last", partial(pieces.quick, 2.0)),
    ]
    measure_rows(work, Results(folder, "card", CARD), seconds=8, log=folder / "log")
    return folder


def held(folder: Path) -> dict[str, dict[str, Any]]:
    result = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert (result["benchmark"], result["machine"]) == ("machine", CARD)
    return {each["row"]: each for each in result["rows"]}


def test_a_failing_row_is_kept_with_its_reason_and_ends_nothing(kept: Path) -> None:
    found = held(kept)
    assert list(found) == ["first", "out of memory", "unequal", "broken", "slow & steady", "endless", "last"]
    assert (found["first"]["ratio"], found["slow & steady"]["ratio"]) == (2.0, 0.5)
    assert found["out of memory"]["failed"] == "MemoryError: CUDA out of memory. Tried to allocate 20 GiB."
    assert "nothing was timed" in found["unequal"]["failed"]
    assert found["broken"]["failed"] == "its process ended with -9 (about to break)"


def test_what_the_time_does_not_suffice_for_is_named(kept: Path) -> None:
    found = held(kept)
    assert found["endless"]["failed"].startswith("not done within")
    assert found["last"]["skipped"] == "takes about 1 s; 0 s were left"


def test_the_page_shows_goals_measurements_and_what_is_missing(kept: Path) -> None:
    text = (kept / "card.md").read_text(encoding="utf-8")
    assert "| first | times as fast | 1.50 | 4.00 | 2.00 | yes |" in text
    assert "| first | share of the peer's memory | 0.50 | 0.20 | - | - |" in text
    assert "| slow & steady | times as fast | 1.50 | 4.00 | 0.50 | no |" in text
    assert "| slow & steady | 2.00 | 1.00 | 0.50 |" in text
    assert "- last: skipped: takes about 1 s; 0 s were left" in text
    assert "- broken: failed: its process ended with -9" in text


def test_less_is_better_where_it_is_memory_or_a_difference() -> None:
    goals = [["memory_ratio", 0.35, 0.2], ["difference", 0.02, 0.0]]
    one = {"row": "a", "group": "step", "goals": goals, "memory_ratio": 0.3, "difference": 0.03}
    text = page.text({"machine": CARD, "rows": [one]}, "card")
    assert "| a | share of the peer's memory | 0.35 | 0.20 | 0.30 | yes |" in text
    assert "| a | difference | 0.02 | - | 0.03 | no |" in text


def test_the_picture_has_a_bar_for_every_ratio(kept: Path) -> None:
    picture = ElementTree.fromstring((kept / "card.svg").read_text(encoding="utf-8"))
    bars = [each.get("class") for each in picture.iter() if each.tag.endswith("rect")]
    assert bars == ["bar", "bar slow"]
    assert "slow & steady" in [each.text for each in picture.iter()]


def test_a_second_sitting_measures_only_what_is_missing(tmp_path: Path) -> None:
    again, new = tmp_path / "again", tmp_path / "new"
    work = [row("noted", partial(pieces.noted, again)), row("other", partial(pieces.noted, new), seconds=1000)]
    measure_rows(work, Results(tmp_path, "card", CARD), seconds=60)
    assert "skipped" in held(tmp_path)["other"]
    work[1] = work[1]._replace(seconds=1)
    measure_rows(work, Results(tmp_path, "card", CARD | {"date": "2026-01-02"}), seconds=60)
    assert (again.read_text(), new.read_text()) == ("x", "x")


def test_rows_of_another_version_are_not_taken_over(tmp_path: Path) -> None:
    measure_rows([row("first", partial(pieces.quick, 2.0))], Results(tmp_path, "card", CARD), seconds=60)
    with pytest.raises(SystemExit, match="other versions or another machine; --again drops them"):
        Results(tmp_path, "card", CARD | {"torch": "2.15"})
    assert Results(tmp_path, "card", CARD | {"torch": "2.15"}, again=True).rows == {}


def test_work_begins_in_a_new_process_where_it_asks_for_one_and_after_a_failure() -> None:
    worker = Worker()
    try:
        first = worker.ask(pieces.process)
        assert first != os.getpid()
        assert worker.ask(pieces.process) == first
        with pytest.raises(Failed, match="CUDA out of memory"):
            worker.ask(pieces.raising)
        assert worker.ask(pieces.process) != first
    finally:
        worker.end()
    assert alone(pieces.process) not in (first, os.getpid())


def test_machines_stand_side_by_side() -> None:
    one = {"machine": {"device": "A"}, "rows": [{"row": "step", "ms": 2.0, "ratio": 3.0}, {"row": "x", "failed": "y"}]}
    two = {"machine": {"device": "B"}, "rows": [{"row": "data", "images_per_second": 200.0}]}
    assert tables.machines([one, two]).splitlines() == [
        "|  | A | B |",
        "|---|---|---|",
        "| step | 2.00 ms (3.00 x) | - |",
        "| x | failed | - |",
        "| data | - | 200 images/s |",
    ]


@pytest.mark.parametrize(
    ("card", "name"),
    [
        ({"device": "NVIDIA H100 80GB HBM3", "capability": "9.0", "threads": 8}, "nvidia-h100-80gb-hbm3"),
        ({"device": "AMD EPYC", "threads": 2}, "amd-epyc-2-threads"),
    ],
)
def test_files_are_named_after_the_machine(card: dict[str, Any], name: str) -> None:
    assert name_of(card) == name


def command(folder: Path, *words: str) -> list[str]:
    tiny = ["--size", "64", "--repeats", "1", "--device", "cpu", "--save", "here", "--folder", str(folder)]
    return [sys.executable, "-m", "benchmarks", *tiny, *words]


@pytest.mark.slow
def test_a_command_that_is_killed_leaves_what_it_had_and_the_next_goes_on(tmp_path: Path) -> None:
    with subprocess.Popen(command(tmp_path, "--rows", "photo"), cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "here.json").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    (first,) = json.loads((tmp_path / "here.json").read_text(encoding="utf-8"))["rows"]
    assert first["row"] == "B0 photo, off"
    answer = subprocess.run(
        command(tmp_path, "--rows", "b0 photo"), cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (first,) == tuple(json.loads((tmp_path / "here.json").read_text(encoding="utf-8"))["rows"])
    assert "B0 photo" not in answer.stdout


# ---------------------------------------------------------------------------------------------------- the rows, tiny


@pytest.fixture(scope="module")
def scope(tmp_path_factory: pytest.TempPathFactory) -> Scope:
    """A machine to be measured in seconds, with few rows of data."""
    folder = tmp_path_factory.mktemp("generated")
    scene_shards(folder, train=6, validation=2)
    return Scope("cpu", folder, size=64, repeats=1)


def test_every_machine_s_plan_names_each_row_once_and_begins_with_the_goals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows.torch.cuda, "get_device_capability", lambda _: (9, 0))
    for device in ("cpu", "cuda"):
        made = rows.plan(Scope(device, Path("nowhere")))
        names = [each.name for each in made]
        assert len(set(names)) == len(names)
        assert {each.group for each in made} <= {*page._COLUMNS, "profile"}
    goals = [bool(each.goals) for each in made]
    assert goals == sorted(goals, reverse=True)
    assert sum(goals) >= 5


@pytest.mark.usefixtures("_with_transformers")
def test_a_training_step_is_measured_beside_the_peer_s(scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "PAPER_BATCH", 1)
    measured = rows.training_step(scope, "b0", 1, "off")
    assert measured["ratio"] == pytest.approx(measured["peer_ms"] / measured["ms"], rel=1e-2)
    assert measured["paper_hours"] == pytest.approx(160_000 * measured["ms"] / 3.6e6)


@pytest.fixture
def _with_transformers() -> None:
    pytest.importorskip("transformers")


@pytest.mark.usefixtures("_with_transformers")
def test_a_prediction_from_pixels_agrees_with_the_peer_s(scope: Scope) -> None:
    measured = rows.prediction(scope, 2, "off")
    assert measured["pixel_agreement"] > 0.999
    assert {"ms", "peer_ms", "ratio", "images_per_second"} <= set(measured)


@pytest.mark.usefixtures("_with_transformers")
def test_predictions_that_disagree_are_not_timed(scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows.fullres, "argmax", lambda logits, size: rows.fullres.plain_argmax(-logits, size))
    with pytest.raises(SystemExit, match="nothing was timed"):
        rows.prediction(scope, 1, "off")


def test_the_loss_is_measured_beside_the_plain_one(scope: Scope) -> None:
    measured = rows.loss(scope, 1, "eager")
    assert measured["difference"] < 1e-5
    assert {"ms", "peer_ms", "ratio"} <= set(measured)


@pytest.mark.parametrize("recipe", ["guide", "paper"])
def test_a_whole_run_tells_its_rate_and_the_paper_s_hours(scope: Scope, recipe: str) -> None:
    measured = rows.whole_run(scope, recipe, 2)
    assert measured["paper_hours"] == pytest.approx(160_000 * 16 / measured["images_per_second"] / 3600)
    assert 0 <= measured["data_wait_share"] <= 1


@pytest.mark.parametrize("path", ["as the guide", "on-device", "paper"])
def test_the_data_path_is_measured_with_workers(scope: Scope, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "count_workers", lambda *_: 1)
    measured = rows.data_path(scope, path)
    assert (measured["rows"], measured["workers"]) == (6, 1)
    assert measured["images_per_second"] == pytest.approx(1e3 / measured["ms_per_image"])


def test_what_work_begins_is_begun_as_in_a_run() -> None:
    """Were a loader's workers spawned, as the process of the work is, they would import torch in every pass."""
    assert alone(pieces.start_method) == multiprocessing.get_start_method()


def test_precisions_are_held_against_float32_on_the_cpu(scope: Scope) -> None:
    measured = rows.precisions(scope, steps=3)
    assert set(measured) == {"steps", "loss_cpu_off", "loss_bf16", "difference"}
    assert 0 < measured["difference"] < 0.02


def test_a_profile_lists_what_a_step_s_time_goes_to(scope: Scope) -> None:
    measured = rows.profile(scope, "b0", 1, "off", most=5)
    shares = [each["share"] for each in measured["top"]]
    assert len(shares) == 5
    assert shares == sorted(shares, reverse=True)
    assert sum(each["ms"] for each in measured["top"]) <= measured["busy_ms"]
    assert "ms of a B0 step" in page.text(
        {"machine": CARD, "rows": [{"row": "p", "group": "profile", **measured}]}, "x"
    )


def test_batches_are_tried_until_memory_runs_out(scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    def rate(options: Any, scope: Scope, variant: str, amp: str, batch_size: int, side: str) -> float | None:
        most = 90 if side == "ours" else 20
        return None if batch_size > most else 100 * (1 - math.exp(-batch_size / 8))

    monkeypatch.setattr(rows, "_rate", rate)
    monkeypatch.setattr(rows, "_against", lambda: ["--against", "transformers"])
    measured = rows.batches(scope, "b0", "bf16")
    assert list(measured["rates"]) == [1, 2, 4, 8, 16, 32, 64]
    assert measured["best_batch_size"] == 32  # 98 % of the rate, where 16 has 86 %
    assert (measured["largest_batch_size"], measured["peer_largest_batch_size"]) == (88, 20)


def test_a_batch_that_does_not_fit_has_no_rate(scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def out_of_memory(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(rows.measure, "alternate", out_of_memory)
    options = rows.throughput.parse_arguments(["--device", "cpu"])
    assert rows._rate(options, scope, "b0", "off", 1, "ours") is None

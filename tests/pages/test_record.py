"""What a run's folder says, whole, half written, or gone on with; and the facts that its report opens with."""

import json
from pathlib import Path
from typing import Any

import pytest
from run_folders import CLASS_NAMES, final_scores, write_log, write_run

from segformer.pages.record import RunRecord, facts, final_results, headline, read_history
from segformer.pages.samples import load_samples
from segformer.training.description import RunDescription

TIMES = "\N{MULTIPLICATION SIGN}"


def log_of(folder: Path, *lines: Any) -> Path:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "log.jsonl").write_text(text, encoding="utf-8")
    return folder / "log.jsonl"


def evaluation(step: int, mean_iou: float | None) -> dict[str, Any]:
    return {"step": step, "eval_mean_iou": mean_iou}


def closing(step: int, runtime: float = 100.0, steps: int | None = None) -> dict[str, Any]:
    timed = step if steps is None else steps
    return {"step": step, "train_runtime": runtime, "train_steps_per_second": timed / runtime}


# History


def test_half_a_last_line_is_passed_over(tmp_path: Path) -> None:
    path = log_of(tmp_path, {"step": 1, "loss": 2.0}, '{"step": 2, "lo')
    assert read_history(path) == [{"step": 1, "loss": 2.0}]


@pytest.mark.parametrize(
    "line",
    [
        *(
            "",
            "null",
            "[]",
            "7",
            '"a"',
            '{"loss": 1}',
            '{"step": null}',
            '{"step": "x"}',
            '{"step": [1]}',
            '{"step": NaN}',
        ),
        *('{"step": Infinity}', '{"step": -1}', '{"step": 1e300}', "[" * 100_000, "\x00\ufffd", '{"step": 1}}'),
    ],
    ids=lambda line: line[:20],
)
def test_a_line_that_is_no_entry_is_passed_over(tmp_path: Path, line: str) -> None:
    path = log_of(tmp_path, {"step": 1}, line, {"step": 2})
    assert [entry["step"] for entry in read_history(path)] == [1, 2]


def test_bytes_that_are_no_text_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_bytes(b'{"step": 1}\n\xff\xfe\x00\n{"step": 2}\n')
    assert [entry["step"] for entry in read_history(tmp_path / "log.jsonl")] == [1, 2]


def test_a_log_that_is_not_there_has_no_entries(tmp_path: Path) -> None:
    assert read_history(tmp_path / "log.jsonl") == []


def test_entries_come_by_step_and_those_of_one_step_as_logged(tmp_path: Path) -> None:
    path = log_of(tmp_path, {"step": 3}, {"step": 1, "loss": 1}, {"step": 1, "loss": 2})
    assert read_history(path) == [{"step": 1, "loss": 1}, {"step": 1, "loss": 2}, {"step": 3}]


# Which evaluation counts


@pytest.mark.parametrize(
    ("history", "saved_step", "expected"),
    [
        ([evaluation(10, 0.1), evaluation(20, 0.2)], None, 20),  # no results saved: the last one logged
        ([evaluation(10, 0.3), evaluation(20, 0.2), closing(20)], 10, 10),  # ended, and left its best weights
        ([evaluation(10, 0.1), evaluation(20, 0.2), closing(20)], 20, 20),
        ([evaluation(10, 0.1)], 20, 10),  # gone on from step 10, beside the results of the first attempt
        ([evaluation(10, 0.1), evaluation(20, 0.2)], 10, 20),  # going on: its last evaluation
        ([evaluation(10, 0.1), closing(10)], 20, 10),  # ended earlier than the attempt whose results lie there
        ([], 7, 7),  # results without a log
        ([evaluation(0, 0.1)], 0, 0),  # only evaluated
    ],
)
def test_the_evaluation_that_counts_is_of_the_weights_in_the_folder(
    tmp_path: Path, history: list[dict[str, Any]], saved_step: int | None, expected: int
) -> None:
    if saved_step is not None:
        (tmp_path / "eval_results.json").write_text(json.dumps({"step": saved_step, "eval_mean_iou": 0.9}))
    assert final_results(tmp_path, history)["step"] == expected


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"step": "20"}'])
def test_broken_results_give_way_to_the_log(tmp_path: Path, content: str) -> None:
    (tmp_path / "eval_results.json").write_text(content)
    assert final_results(tmp_path, [evaluation(20, 0.5), closing(20)])["eval_mean_iou"] == 0.5


def test_a_folder_without_any_evaluation_has_no_results(tmp_path: Path) -> None:
    assert final_results(tmp_path, [{"step": 1, "loss": 1.0}]) == {}


# Names


def write_config(folder: Path, id2label: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"id2label": id2label}))


def test_class_names_are_those_of_the_run_then_of_its_model_then_of_its_last_checkpoint(tmp_path: Path) -> None:
    for step, name in ((9, "older"), (10, "newest")):
        write_config(tmp_path / f"checkpoint-{step}", {"0": name})
        for file in ("training_state.pt", "model.safetensors", "preprocessor_config.json", "SHA256SUMS"):
            (tmp_path / f"checkpoint-{step}" / file).write_bytes(b"")
    assert RunRecord.load(tmp_path).class_names == ["newest"]
    write_config(tmp_path, {"1": " bed ", "0": "wall"})
    assert RunRecord.load(tmp_path).class_names == ["wall", "bed"]
    RunDescription(class_names=["sky "]).save(tmp_path)
    assert RunRecord.load(tmp_path).class_names == ["sky"]


def test_classes_without_a_name_are_numbered(tmp_path: Path) -> None:
    write_config(tmp_path, {"0": "wall", "2": "sky"})
    log_of(tmp_path, {**evaluation(1, 0.5), "eval_per_category_iou": [0.1, 0.2, 0.3, None]})
    assert RunRecord.load(tmp_path).class_names == ["wall", "class 1", "sky", "class 3"]


@pytest.mark.parametrize("id2label", [None, [], {}, {"a": "b"}, {"999999999999": "far"}, 3])
def test_strange_names_do_not_stop_a_report(tmp_path: Path, id2label: Any) -> None:
    write_config(tmp_path, id2label)
    assert len(RunRecord.load(tmp_path).class_names) <= 4096


# Description


def test_a_description_comes_back(tmp_path: Path) -> None:
    about = RunDescription({"amp": None}, ["wall"], "SegFormer-B0", 7, 800, 80, [128, 96], 1400)
    about.save(tmp_path)
    assert RunDescription.load(tmp_path) == about


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"', "[" * 100_000])
def test_a_broken_description_is_an_empty_one(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    assert RunDescription.load(tmp_path) == RunDescription()


def test_what_is_of_another_kind_in_a_description_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"settings": [1], "model": 5, "parameters": 7, "later": 1}))
    assert RunDescription.load(tmp_path) == RunDescription(parameters=7)


# Facts


def test_a_whole_folder_is_read_whole(tmp_path: Path) -> None:
    record = RunRecord.load(write_run(tmp_path / "toy-1"))
    assert (record.title, record.last_step, record.class_names) == ("toy-1", 1000, CLASS_NAMES)
    assert record.results == {"step": 1000, **final_scores(1000, 1000)}
    assert len(record.evaluations) == 10
    assert [sample.name for sample in record.samples] == [sample.name for sample in load_samples(tmp_path / "toy-1")]


def test_the_headline_says_score_steps_time_and_speed(tmp_path: Path) -> None:
    assert headline(RunRecord.load(write_run(tmp_path))) == {
        "mean IoU": "0.600",
        "pixel accuracy": "0.900",
        "steps": "1,000",
        "to train and evaluate": "3 min 42 s",
        "training images per second": "50.5",
    }


def test_the_headline_of_a_run_that_goes_on_says_how_far_it_is(tmp_path: Path) -> None:
    write_log(tmp_path, 500, finished=False)
    RunDescription(total_steps=1400).save(tmp_path)
    assert headline(RunRecord.load(tmp_path))["steps"] == "500 of 1,400"
    assert len(headline(RunRecord.load(tmp_path))) == 3


def test_the_time_of_a_resumed_run_is_said_to_be_of_its_last_steps(tmp_path: Path) -> None:
    log_of(tmp_path, closing(1000, runtime=7300.0, steps=400))
    assert headline(RunRecord.load(tmp_path))["for the last 400 steps"] == "2 h 01 min"


def test_facts_say_what_was_scored_and_how(tmp_path: Path) -> None:
    assert facts(RunRecord.load(write_run(tmp_path))) == {
        "Recipe": "toy",
        "Model": "SegFormer-B0, 3.8 million parameters, from scratch",
        "Data": "toy, 800 images to train on, 80 images to evaluate on",
        "Scores": "after step 1,000; "
        f"labels are resized to 64 {TIMES} 48, so they do not compare with scores at full size",
    }


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"eval_resolution": "original"}, "predictions are enlarged to each label map's own size"),
        (
            {"eval_resolution": "keep-ratio", "eval_scales": "1", "eval_flip": False},
            "photos keep their shape, predictions are enlarged to each label map's own size",
        ),
        (
            {"eval_resolution": "keep-ratio", "eval_scales": "0.5,1", "eval_flip": True},
            "photos keep their shape, predictions are enlarged to each label map's own size; "
            "mean over scales 0.5,1 and mirror images",
        ),
        ({"eval_flip": True}, "mean over mirror images"),
        (
            {"eval_resolution": "processed"},
            "labels are resized to what the model sees, so they do not compare with scores at full size",
        ),
    ],
)
def test_the_report_says_how_scores_were_taken(tmp_path: Path, settings: dict[str, Any], expected: str) -> None:
    RunDescription(settings).save(tmp_path)
    assert facts(RunRecord.load(tmp_path)) == {"Scores": expected}


def test_a_checkpoint_that_a_run_started_from_is_named(tmp_path: Path) -> None:
    RunDescription({"checkpoint": "nvidia/mit-b0"}, model="SegFormer-B0", parameters=7).save(tmp_path)
    assert facts(RunRecord.load(tmp_path)) == {"Model": "SegFormer-B0, 7 parameters, from nvidia/mit-b0"}


def test_facts_say_what_the_run_took(tmp_path: Path) -> None:
    log_of(tmp_path, {**closing(10), "peak_memory_mib": 2560.0, "data_wait_share": 0.031})
    assert facts(RunRecord.load(tmp_path)) == {
        "Machine": "at most 2.5 GiB of memory, 3.1 % of the time waiting for data"
    }


def test_a_better_step_than_the_one_that_counts_is_named_and_the_first_of_equals(tmp_path: Path) -> None:
    log_of(
        tmp_path,
        evaluation(10, 0.4),
        evaluation(20, 0.5),
        evaluation(30, 0.5),
        evaluation(40, None),
        evaluation(50, 0.1),
    )
    assert facts(RunRecord.load(tmp_path))["Best"] == "mean IoU 0.500 after step 20"
    log_of(tmp_path, evaluation(10, 0.4), evaluation(20, 0.5))
    assert "Best" not in facts(RunRecord.load(tmp_path))


def test_nothing_known_is_nothing_said(tmp_path: Path) -> None:
    assert headline(RunRecord.load(tmp_path)) == {}
    assert facts(RunRecord.load(tmp_path)) == {}

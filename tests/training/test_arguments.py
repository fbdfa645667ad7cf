"""What the command line leaves open, and where it comes from: a recipe, an earlier run, a file, a checkpoint's run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from segformer.config import compare_classes
from segformer.training.arguments import parse_arguments
from segformer.training.checkpoints import STATE_NAME
from segformer.training.description import RunDescription
from segformer.training.recipes import GROUPS, TrainConfig, configure
from train import train


@pytest.mark.parametrize(
    ("words", "recipe"),
    [
        ([], "toy"),
        (["--dataset", "toy"], "toy"),
        (["--max-steps", "3"], "toy"),
        (["--dataset", "owner/photos"], "own"),
        (["--dataset", "scene_parse_150"], "guide"),
        (["--checkpoint", "nvidia/mit-b0"], "guide"),
        (["--eval-only", "--checkpoint", "owner/model", "--dataset", "owner/photos"], "guide"),
        (["--recipe", "paper", "--dataset", "owner/photos"], "paper"),
    ],
    ids=" ".join,
)
def test_the_recipe_is_the_toys_only_where_nothing_else_is_named(words: list[str], recipe: str) -> None:
    assert parse_arguments(words).recipe == recipe


def test_a_recipe_that_was_not_asked_for_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        parse_arguments(["--dataset", "owner/photos"])
    assert caplog.messages == ["taking --recipe own, as none is named"]


def test_an_evaluation_scores_all_rows_of_the_split_that_is_named() -> None:
    asked = parse_arguments(["--eval-only", "--checkpoint", "a/b", "--recipe", "guide", "--split", "validation"])
    assert (asked.split, asked.eval_split) == ("validation", "validation")
    both = ["--eval-only", "--checkpoint", "a/b", "--recipe", "guide", "--split", "train", "--eval-split", "test"]
    assert parse_arguments(both).eval_split == "test"


def test_the_help_lists_every_setting_under_a_group_with_the_recipes_value(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--recipe", "paper", "--help"])
    said = capsys.readouterr().out
    assert all(f"\n{group}:" in said for group in GROUPS.values())
    assert "--recipe paper" in said
    assert "(default: 160000)" in " ".join(said.split())


@pytest.fixture
def run(small_shards: Path, small_checkpoint: Path, tmp_path: Path) -> Path:
    """A run of two steps, with a setting that no recipe has."""
    settings = {"dataset": str(small_shards), "split": "train", "eval_split": "validation", "device": "cpu"}
    steps = {"max_steps": 2, "eval_steps": 2, "save_steps": 1, "learning_rate": 3e-4}
    return train(
        configure("guide", checkpoint=str(small_checkpoint), output_dir=str(tmp_path / "run"), **settings, **steps)
    )


@pytest.mark.parametrize("named", ["", "checkpoint-1"])
def test_going_on_takes_every_setting_from_the_checkpoint(run: Path, named: str) -> None:
    now = parse_arguments(["--resume-from-checkpoint", str(run / named)])
    then = torch.load(run / "checkpoint-1" / STATE_NAME, weights_only=True)["config"]
    free = {"resume_from_checkpoint", "overwrite_output_dir", "output_dir"}
    assert {name: value for name, value in asdict(now).items() if name not in free} == {
        name: value for name, value in then.items() if name not in free
    }


def test_a_run_goes_on_by_its_folder_alone_to_the_same_weights(run: Path) -> None:
    whole = (run / "model.safetensors").read_bytes()
    again = train(parse_arguments(["--resume-from-checkpoint", str(run / "checkpoint-1")]))
    assert again.resolve() == run.resolve()
    assert (run / "model.safetensors").read_bytes() == whole


def test_flags_that_would_make_another_run_are_refused_all_at_once(run: Path) -> None:
    asked = parse_arguments(["--resume-from-checkpoint", str(run), "--learning-rate", "1", "--seed", "7"])
    with pytest.raises(ValueError, match=r"learning_rate 0.0003, seed 42, this run asks for 1.0, 7"):
        train(asked)


def test_a_finished_run_is_lengthened_and_the_schedule_is_said(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        train(parse_arguments(["--resume-from-checkpoint", str(run), "--max-steps", "4"]))
    assert "from step 3 on the learning rate is that of a run of 4 steps; it was that of one of 2" in caplog.messages
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    rates = {entry["step"]: entry["learning_rate"] for entry in entries if "learning_rate" in entry}
    assert rates == pytest.approx({1: 3e-4, 2: 1.5e-4, 3: 1.5e-4, 4: 0.75e-4})


def test_a_run_is_not_shortened_below_where_it_is(run: Path) -> None:
    with pytest.raises(ValueError, match="the checkpoint is at step 2, beyond the 1 asked for"):
        train(parse_arguments(["--resume-from-checkpoint", str(run), "--max-steps", "1"]))


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--resume-from-checkpoint", str(tmp_path)])
    assert f"{tmp_path} holds no checkpoint to go on from" in capsys.readouterr().err


def test_a_run_json_gives_its_settings_to_another_run(run: Path, small_shards: Path, small_checkpoint: Path) -> None:
    paths = ["--dataset", str(small_shards), "--checkpoint", str(small_checkpoint)]
    config = parse_arguments(["--config", str(run / "run.json"), *paths, "--seed", "7"])
    assert (config.recipe, config.learning_rate, config.seed, config.output_dir) == ("guide", 3e-4, 7, None)


def test_paths_that_a_run_json_no_longer_holds_are_asked_for(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--config", str(run / "run.json")])
    assert "which is not here; name it by --dataset" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", '{"settings": {"learning_rat": 1}}'])
def test_a_file_that_holds_no_settings_is_refused(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(SystemExit):
        parse_arguments(["--config", str(tmp_path / "run.json")])
    assert "--config takes" in capsys.readouterr().err


def test_a_checkpoint_is_scored_as_its_run_was(tmp_path: Path) -> None:
    settings = {"recipe": "toy", "image_size": 64, "eval_resolution": "original", "learning_rate": 9.0}
    RunDescription(settings=settings).save(tmp_path)
    config = parse_arguments(["--eval-only", "--checkpoint", str(tmp_path)])
    assert (config.recipe, config.image_size, config.eval_resolution) == ("toy", "64", "original")
    assert config.learning_rate != 9.0  # which says nothing of how it was scored
    words = ["--eval-only", "--checkpoint", str(tmp_path), "--image-size", "96"]
    assert parse_arguments(words).image_size == "96"


def test_a_recipe_that_is_named_is_how_a_checkpoint_is_scored(tmp_path: Path) -> None:
    settings = {"recipe": "toy", "eval_resolution": "processed", "num_labels": 7, "reduce_labels": False}
    RunDescription(settings=settings).save(tmp_path)
    config = parse_arguments(["--recipe", "paper", "--eval-only", "--checkpoint", str(tmp_path)])
    assert (config.eval_resolution, config.num_labels, config.reduce_labels) == ("keep-ratio", 7, False)


@pytest.mark.parametrize(("names", "refused"), [(["b", "a", "c"], True), (["a", "b", "tree"], False)])
def test_a_model_of_the_same_classes_in_another_order_is_not_scored(
    names: list[str], refused: bool, caplog: pytest.LogCaptureFixture
) -> None:
    held = dict(enumerate(["A ", "b", "c"]))
    if refused:
        with pytest.raises(ValueError, match="class 0 is 'a' to the model and 'b' in the label maps: the same classes"):
            compare_classes(held, dict(enumerate(names)))
    else:
        compare_classes(held, dict(enumerate(names)))
        assert "class 2 is 'c' to the model and 'tree' in the label maps" in caplog.text


def test_classes_without_names_of_their_own_are_not_compared(caplog: pytest.LogCaptureFixture) -> None:
    compare_classes({0: "LABEL_0", 1: "LABEL_1"}, {0: "sky", 1: "road"})
    assert not caplog.text


def test_every_setting_lies_in_a_group() -> None:
    assert next(iter(TrainConfig.__dataclass_fields__)) == "recipe"
    assert list(TrainConfig.__dataclass_fields__)[1] in GROUPS
    assert set(GROUPS) <= set(TrainConfig.__dataclass_fields__)

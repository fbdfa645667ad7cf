"""What the command line leaves open, and where it comes from: a recipe, an earlier run, a file, a checkpoint's run."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segformer import ImageProcessor
from segformer.config import compare_classes
from segformer.training.arguments import parse_arguments
from segformer.training.checkpoints import STATE_NAME
from segformer.training.description import RunDescription
from segformer.training.recipes import GROUPS, RECIPES, TrainConfig, configure
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


@pytest.mark.parametrize("resolution", ["keep-ratio", "window"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_photos_that_keep_their_sizes_are_scored_one_by_one_without_being_told(resolution: str, recipe: str) -> None:
    words = ["--recipe", recipe, "--eval-resolution", resolution]
    assert parse_arguments(words).per_device_eval_batch_size == 1
    with pytest.raises(ValueError, match="per_device_eval_batch_size is 4; photos that keep their shape"):
        configure(recipe, eval_resolution=resolution, per_device_eval_batch_size=4)


def test_a_batch_size_that_a_run_recorded_gives_way_to_a_resolution_asked_for_now(run: Path) -> None:
    words = ["--eval-only", "--checkpoint", str(run), "--dataset", "toy", "--eval-resolution", "window"]
    assert parse_arguments(words).per_device_eval_batch_size == 1
    assert parse_arguments(words[:-2]).per_device_eval_batch_size == 2


# Classes that a checkpoint knows


def of_values(folder: Path, *held: int, count: int = 5) -> Path:
    """Photos whose label maps hold these values, in train and validation."""
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            values = np.random.default_rng(number).choice(held, (40, 50)).astype(np.uint8)
            Image.fromarray(np.stack([values] * 3, -1)).save(folder / f"images/{split}/{number}.png")
            Image.fromarray(values).save(folder / f"masks/{split}/{number}.png")
    return folder


@pytest.fixture
def named_run(small_checkpoint: Path, tmp_path: Path) -> Path:
    """A run on three named classes of which value 7 is ignored, told by flags and a file that lies elsewhere."""
    (tmp_path / "elsewhere").mkdir()
    names = tmp_path / "elsewhere/names.txt"
    names.write_text("sky\nroad\ncar\n")
    said = {"label_names": str(names), "reduce_labels": False, "ignore_index": 7, "eval_resolution": "original"}
    steps = {"max_steps": 1, "eval_steps": 1, "save_steps": 1, "device": "cpu"}
    data = {"dataset": str(of_values(tmp_path / "mine", 0, 1, 2, 7)), "split": "train", "eval_split": "validation"}
    paths = {"checkpoint": str(small_checkpoint), "output_dir": str(tmp_path / "run")}
    return train(configure("guide", **said, **steps, **data, **paths))


def scored(words: list[str]) -> Path:
    return train(parse_arguments(["--eval-only", "--device", "cpu", *words]))


def test_data_of_the_same_name_in_another_folder_is_not_taken_for_that_of_the_run(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ("here", "there"):
        of_values(tmp_path / place / "data", 0, 1, 2)
    monkeypatch.chdir(tmp_path / "here")
    said = {"num_labels": 3, "reduce_labels": False, "split": "train", "eval_split": "validation", "device": "cpu"}
    steps = {"max_steps": 1, "eval_steps": 1, "save_steps": 1, "checkpoint": str(small_checkpoint)}
    run = train(configure("guide", **said, **steps, dataset="data", output_dir=str(tmp_path / "run")))
    monkeypatch.chdir(tmp_path / "there")
    for words in (["--eval-only", "--checkpoint", str(run)], ["--config", str(run / "run.json")]):
        with pytest.raises(SystemExit):
            parse_arguments([*words, "--output-dir", str(tmp_path / "s")])
        assert (
            "the run was made with dataset 'data', which is not here; name it by --dataset" in capsys.readouterr().err
        )
    assert parse_arguments(["--eval-only", "--checkpoint", str(run), "--dataset", "data"]).dataset == "data"


@pytest.mark.parametrize("what", ["run", "run/checkpoint-1", "copied"])
def test_other_data_is_scored_by_the_classes_and_the_rule_that_the_model_was_trained_on(
    what: str, named_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(tmp_path / "elsewhere")
    (tmp_path / "copied").mkdir()
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        shutil.copy(named_run / name, tmp_path / "copied")
    other = of_values(tmp_path / "others", 0, 1, 2, 7)
    capsys.readouterr()
    folder = scored(["--checkpoint", str(tmp_path / what), "--dataset", str(other), "--output-dir", f"{tmp_path}/s"])
    told = json.loads((folder / "run.json").read_text())
    assert told["class_names"] == ["sky", "road", "car"]
    assert told["labels"] == json.loads((named_run / "run.json").read_text())["labels"]
    assert told["scored_rows"] == "validation"
    assert "which was trained on them (--label-names): sky, road, car" in " ".join(capsys.readouterr().out.split())
    if what != "copied":
        assert told["settings"]["eval_resolution"] == "original"


def test_other_data_that_names_its_classes_is_read_by_its_own_names(named_run: Path, tmp_path: Path) -> None:
    other = of_values(tmp_path / "others", 0, 1, 2)
    (other / "id2label.json").write_text('{"0": "sky", "1": "street", "2": "car"}')
    folder = scored(["--checkpoint", str(named_run), "--dataset", str(other), "--output-dir", str(tmp_path / "s")])
    assert json.loads((folder / "run.json").read_text())["class_names"] == ["sky", "street", "car"]


def test_other_data_that_the_models_rule_has_no_place_for_is_refused(named_run: Path, tmp_path: Path) -> None:
    other = of_values(tmp_path / "others", 0, 1, 9)
    with pytest.raises(ValueError, match="hold 9 in the first 5 rows, but 3 classes are 0 to 2"):
        scored(["--checkpoint", str(named_run), "--dataset", str(other), "--output-dir", str(tmp_path / "s")])


def test_a_flag_given_now_leaves_the_names_that_the_model_knows(named_run: Path, tmp_path: Path) -> None:
    other = of_values(tmp_path / "others", 0, 1, 2, 9)
    flags = ["--ignore-index", "9", "--no-reduce-labels", "--output-dir", str(tmp_path / "s")]
    folder = scored(["--checkpoint", str(named_run), "--dataset", str(other), *flags])
    told = json.loads((folder / "run.json").read_text())
    assert (told["class_names"], told["labels"]["ignore_index"]) == (["sky", "road", "car"], 9)


def test_the_runs_own_data_named_again_keeps_its_split(named_run: Path, tmp_path: Path) -> None:
    own = parse_arguments(["--eval-only", "--checkpoint", str(named_run), "--dataset", str(tmp_path / "mine")])
    assert (own.split, own.eval_split, own.label_names) == ("train", "validation", None)
    another = parse_arguments(["--eval-only", "--checkpoint", str(named_run), "--dataset", str(tmp_path / "others")])
    assert (another.split, another.eval_split) == ("train", "auto")


def test_every_checkpoint_carries_the_rule_and_transformers_opens_it(named_run: Path) -> None:
    import transformers

    for folder in (named_run, named_run / "checkpoint-1"):
        held = json.loads((folder / "preprocessor_config.json").read_text())
        assert held["label_rule"] == json.loads((named_run / "run.json").read_text())["labels"]
        assert ImageProcessor.from_pretrained(folder).label_rule == held["label_rule"]
        theirs = transformers.AutoImageProcessor.from_pretrained(folder, use_fast=False)
        photo = Image.new("RGB", (50, 40), (10, 20, 30))
        ours = ImageProcessor.from_pretrained(folder).image_to_tensor(photo)
        assert np.array_equal(np.asarray(theirs(photo)["pixel_values"][0]), ours.numpy())


# Paths


@pytest.fixture
def relative_run(small_shards: Path, small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run started in a folder, whose dataset it named from there."""
    (tmp_path / "project/here").mkdir(parents=True)
    shutil.copytree(small_shards, tmp_path / "project/here/shards")
    monkeypatch.chdir(tmp_path / "project")
    data = ["--dataset", "here/shards", "--split", "train", "--eval-split", "validation", "--device", "cpu"]
    steps = ["--max-steps", "2", "--eval-steps", "2", "--save-steps", "1", "--output-dir", "runs/x"]
    train(parse_arguments(["--recipe", "guide", "--checkpoint", str(small_checkpoint), *data, *steps]))
    shutil.rmtree("runs/x/checkpoint-2")
    return tmp_path / "project/runs/x"


def test_a_run_goes_on_from_another_folder_with_the_data_it_had(
    relative_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (relative_run / "model.safetensors").read_bytes()
    monkeypatch.chdir(tmp_path)
    config = parse_arguments(["--resume-from-checkpoint", str(relative_run)])
    assert config.dataset == str(tmp_path / "project/here/shards")
    train(config)
    assert (relative_run / "model.safetensors").read_bytes() == whole


def test_data_that_moved_along_is_found_where_the_same_way_leads(
    relative_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.move(tmp_path / "project", tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    assert parse_arguments(["--resume-from-checkpoint", "runs/x"]).dataset == "here/shards"


def test_data_that_is_nowhere_is_named_with_both_places(
    relative_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.move(tmp_path / "project/here", tmp_path / "there")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        parse_arguments(["--resume-from-checkpoint", str(relative_run)])
    where = f"{tmp_path}/project/here/shards"
    said = f"the run was made with --dataset here/shards, which is not here, nor where it was, {where}; name it by"
    assert said in capsys.readouterr().err
    named = parse_arguments(["--resume-from-checkpoint", str(relative_run), "--dataset", "there/shards"])
    assert named.dataset == "there/shards"

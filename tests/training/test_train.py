"""The training run: what it writes, what it repeats exactly, and what it refuses."""

from __future__ import annotations

import io
import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import programs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from libraries import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import train as training
from data.classes import ID2LABEL
from data.order import StepSampler
from segformer import VARIANTS, ConfusionMatrix, ImageProcessor, Segformer, fullres
from segformer.detail import SIZES
from segformer.training.checkpoints import STATE_NAME, find_checkpoints, read_training_state, save_checkpoint
from segformer.training.history import Plan
from segformer.training.output import RunLock
from segformer.training.precision import amp_dtype
from train import TrainConfig, configure, parse_arguments, train, train_step


@pytest.fixture(scope="session")
def small_run(small_shards: Path, small_checkpoint: Path) -> dict[str, Any]:
    """Settings of a run of a few seconds, but for its folder."""
    return {
        "dataset": str(small_shards),
        "split": "train",
        "eval_split": "validation",
        "checkpoint": str(small_checkpoint),
        "device": "cpu",
        "max_steps": 6,
        "eval_steps": 3,
        "save_steps": 3,
        "learning_rate": 1e-3,
    }


@pytest.fixture
def settings(small_run: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Those settings, and a folder."""
    return {**small_run, "output_dir": str(tmp_path / "run")}


@pytest.fixture(scope="session")
def finished_once(small_run: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of that run, which no test may change."""
    return train(configure("guide", **small_run, output_dir=str(tmp_path_factory.mktemp("finished") / "run")))


@pytest.fixture
def finished(finished_once: Path, settings: dict[str, Any]) -> Path:
    """What ``train(configure("guide", **settings))`` leaves and returns."""
    return shutil.copytree(finished_once, Path(settings["output_dir"]))


def _log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def _timeless(folder: Path) -> list[dict[str, Any]]:
    """The log without what depends on how fast and where it was written."""
    measured = ("runtime", "second", "wait", "memory")
    return [{k: v for k, v in entry.items() if not any(word in k for word in measured)} for entry in _log(folder)]


def _weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_output_folder_holds_model_results_log_card_and_checkpoints(finished: Path) -> None:
    present = {path.name for path in finished.iterdir()}
    assert present == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "README.md",
        "eval_results.json",
        "classes.csv",
        "confusion.csv",
        "log.jsonl",
        "samples.png",
        "samples",
        "report.html",
        "run.json",
        "checkpoint-3",
        "checkpoint-6",
    }
    assert {path.name for path in (finished / "checkpoint-6").iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "SHA256SUMS",
        STATE_NAME,
    }
    assert Image.open(finished / "samples.png").size[0] > 0


def test_output_folder_and_its_checkpoints_open_in_the_transformers_pipeline(finished: Path) -> None:
    for model in (finished, finished / "checkpoint-3"):
        segments = transformers.pipeline("image-segmentation", model=str(model))(Image.new("RGB", (40, 50)))
        assert all(segment["mask"].size == (40, 50) for segment in segments)


def test_log_has_the_keys_of_trainer(settings: dict[str, Any]) -> None:
    log = _log(train(configure("guide", **settings, eval_on_start=True)))
    steps = [entry for entry in log if "loss" in entry]
    evaluations = [entry for entry in log if "eval_loss" in entry]
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4, 5, 6]
    assert set(steps[0]) == {"step", "epoch", "loss", "grad_norm", "learning_rate"}
    assert [entry["step"] for entry in evaluations] == [0, 3, 6]
    assert set(evaluations[0]) == {
        "step",
        "epoch",
        "eval_loss",
        "eval_mean_iou",
        "eval_mean_accuracy",
        "eval_overall_accuracy",
        "eval_per_category_iou",
        "eval_per_category_accuracy",
        "eval_per_category_share",
        "eval_mean_boundary_iou",
        "eval_per_category_boundary_iou",
        *(f"eval_mean_iou_{size}" for size in SIZES),
        "eval_runtime",
        "eval_samples_per_second",
    }


def test_loss_starts_near_that_of_a_uniform_guess_and_falls(settings: dict[str, Any]) -> None:
    longer = {**settings, "max_steps": 60, "eval_steps": 60, "save_steps": 60, "learning_rate": 0.02}
    losses = [entry["loss"] for entry in _log(train(configure("guide", **longer))) if "loss" in entry]
    assert abs(losses[0] - math.log(150)) < 0.1
    assert sum(losses[-5:]) / 5 < losses[0] - 0.5


def test_same_seed_gives_the_same_weights_and_another_seed_others(settings: dict[str, Any], tmp_path: Path) -> None:
    first, second, third = (
        _weights(train(configure("guide", **{**settings, "output_dir": str(tmp_path / name), "seed": seed})))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == second
    assert first != third


def test_number_of_workers_changes_nothing(settings: dict[str, Any], tmp_path: Path) -> None:
    runs = [
        _weights(
            train(configure("guide", **{**settings, "output_dir": str(tmp_path / str(n)), "dataloader_num_workers": n}))
        )
        for n in (0, 2)
    ]
    assert runs[0] == runs[1]


def test_resume_in_the_middle_of_an_epoch_is_bit_exact(settings: dict[str, Any], tmp_path: Path) -> None:
    whole = train(configure("guide", **{**settings, "max_steps": 8, "save_steps": 3}))
    part = configure("guide", **{**settings, "max_steps": 8, "save_steps": 3, "output_dir": str(tmp_path / "part")})
    run = training.Run(part)
    run.train()
    for step in (6, 8):  # as if the run had been killed after step 4
        for path in sorted((tmp_path / f"part/checkpoint-{step}").iterdir()):
            path.unlink()
        (tmp_path / f"part/checkpoint-{step}").rmdir()
    resumed = train(
        configure(
            "guide",
            **{
                **settings,
                "max_steps": 8,
                "save_steps": 3,
                "output_dir": str(tmp_path / "part"),
                "resume_from_checkpoint": "last",
            },
        )
    )
    assert _weights(resumed) == _weights(whole)
    assert [entry["step"] for entry in _log(resumed)] == [entry["step"] for entry in _log(whole)]
    assert _timeless(resumed) == _timeless(whole)


def test_last_without_a_checkpoint_starts_at_the_beginning(
    settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    folder = train(configure("guide", **{**settings, "max_steps": 1, "resume_from_checkpoint": "last"}))
    assert "starting at step 0" in caplog.text
    assert _log(folder)[0]["step"] == 1


def test_resuming_with_other_settings_names_both_values(settings: dict[str, Any], finished: Path) -> None:
    with pytest.raises(ValueError, match=r"learning_rate 0.001, this run asks for 0.5"):
        train(configure("guide", **{**settings, "learning_rate": 0.5, "resume_from_checkpoint": "last"}))


def test_old_checkpoints_go_but_the_best_and_the_newest_stay(settings: dict[str, Any]) -> None:
    config = configure("guide", **{**settings, "max_steps": 5, "eval_steps": 1, "save_steps": 1, "save_total_limit": 2})
    folder = train(config)
    kept = list(find_checkpoints(folder))
    scores = {entry["step"]: entry["eval_mean_iou"] for entry in _log(folder) if "eval_loss" in entry}
    best = max(scores, key=lambda step: (scores[step], -step))
    assert 5 in kept
    assert best in kept
    assert len(kept) == 2


def test_load_best_model_at_end_leaves_the_best_checkpoint(settings: dict[str, Any]) -> None:
    config = configure(
        "guide",
        **{**settings, "max_steps": 5, "eval_steps": 1, "save_steps": 1, "learning_rate": 0.5},
        load_best_model_at_end=True,
        lr_scheduler_type="constant",
    )
    folder = train(config)
    scores = {entry["step"]: entry["eval_mean_iou"] for entry in _log(folder) if "eval_loss" in entry}
    best = max(scores, key=lambda step: (scores[step], -step))
    assert _weights(folder) == _weights(folder / f"checkpoint-{best}")
    results = json.loads((folder / "eval_results.json").read_text(encoding="utf-8"))
    assert results["eval_mean_iou"] == pytest.approx(scores[best])


def test_the_best_checkpoint_comes_along_to_another_folder(settings: dict[str, Any], tmp_path: Path) -> None:
    scored = {"max_steps": 6, "eval_steps": 1, "save_steps": 1, "save_total_limit": None, "learning_rate": 0.5}
    best_kept = {**settings, **scored, "load_best_model_at_end": True, "lr_scheduler_type": "constant"}
    whole = train(configure("guide", **best_kept))
    best = next(step for step in find_checkpoints(whole) if _weights(whole / f"checkpoint-{step}") == _weights(whole))
    assert best < 6
    going_on = {"output_dir": str(tmp_path / "another"), "resume_from_checkpoint": str(whole / "checkpoint-5")}
    resumed = train(configure("guide", **{**best_kept, **going_on}))
    assert _weights(resumed) == _weights(whole)
    assert best in find_checkpoints(resumed)


def test_a_run_brought_to_another_folder_goes_on_there_before_it_has_saved(
    settings: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    moved = {**settings, "output_dir": str(tmp_path / "another")}
    run = training.Run(configure("guide", **moved, resume_from_checkpoint=str(finished / "checkpoint-3")))
    run.earlier.release()  # as if it had been killed now
    resumed = train(configure("guide", **moved, resume_from_checkpoint="last"))
    assert _weights(resumed) == _weights(finished)
    assert _log(resumed)[0]["step"] == 4


def test_a_damaged_best_checkpoint_does_not_replace_the_last_weights(
    settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    scored = {"max_steps": 6, "eval_steps": 1, "save_steps": 1, "save_total_limit": None, "learning_rate": 0.5}
    best_kept = {**settings, **scored, "load_best_model_at_end": True, "lr_scheduler_type": "constant"}
    run = training.Run(configure("guide", **best_kept))
    run.train()
    best = run.output_dir / f"checkpoint-{run.history.progress.best_step}"
    assert run.history.progress.best_step != 6
    content = bytearray((best / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (best / "model.safetensors").write_bytes(content)
    run.finish()
    run.earlier.release()
    assert _weights(run.output_dir) == _weights(run.output_dir / "checkpoint-6")
    assert f"{best}/model.safetensors is damaged" in caplog.text


@pytest.mark.parametrize("found", [None, "checkpoint-3"])
def test_a_run_that_ends_while_another_starts_is_not_lost(settings: dict[str, Any], found: str | None) -> None:
    """A run looks for what to go on from before it has the right to the folder, and again when it has it."""
    folder = Path(settings["output_dir"])
    build_samples = training.build_samples

    def build_while_another_ends(*arguments: Any) -> Any:
        if found is None:
            train(configure("guide", **{**settings, "max_steps": 3}))
        else:
            shutil.move(folder / "hidden", folder / "checkpoint-6")
        return build_samples(*arguments)

    if found is not None:
        train(configure("guide", **settings))
        shutil.move(folder / "checkpoint-6", folder / "hidden")
    with pytest.MonkeyPatch.context() as patch:
        second = configure("guide", **settings, resume_from_checkpoint="last")
        patch.setattr(training, "build_samples", lambda *words: patch.undo() or build_while_another_ends(*words))
        with pytest.raises(ValueError, match=r"another run has written to .* meanwhile; start again"):
            train(second)
    assert (folder / f"checkpoint-{3 if found is None else 6}/model.safetensors").exists()


def test_an_evaluation_of_the_step_that_is_gone_on_from_is_logged_once(settings: dict[str, Any]) -> None:
    whole = _timeless(train(configure("guide", **settings)))
    folder = Path(settings["output_dir"])
    state = read_training_state(folder / "checkpoint-6")
    cut_off = {**state, "progress": {**state["progress"], "evaluated_step": 3}}  # after its evaluation was logged

    def save_model_files(unfinished: Path) -> None:
        for name in ("model.safetensors", "config.json", "preprocessor_config.json"):
            shutil.copy(folder / "checkpoint-6" / name, unfinished)

    save_checkpoint(folder, 6, save_model_files, cut_off)
    entries = [line for line in (folder / "log.jsonl").read_text().splitlines() if "train_runtime" not in line]
    (folder / "log.jsonl").write_text("\n".join(entries) + "\n")
    assert _timeless(train(configure("guide", **settings, resume_from_checkpoint="last"))) == whole


def test_a_processor_that_does_not_resize_takes_photos_of_one_size(
    settings: dict[str, Any], small_checkpoint: Path, tmp_path: Path
) -> None:
    as_it_is = tmp_path / "as-it-is"
    shutil.copytree(small_checkpoint, as_it_is)
    ImageProcessor(do_resize=False).save_pretrained(as_it_is)
    with pytest.raises(ValueError, match=r"images of .* pixels do not fit in one batch; have them resized"):
        train(configure("guide", **{**settings, "checkpoint": str(as_it_is)}))
    overwriting = {"checkpoint": str(as_it_is), "overwrite_output_dir": True, "image_size": 32}
    assert ImageProcessor.from_pretrained(train(configure("guide", **{**settings, **overwriting}))).do_resize


def test_shards_that_a_glob_finds_in_the_output_folder_are_not_deleted(settings: dict[str, Any]) -> None:
    folder = Path(settings["output_dir"])
    shutil.copytree(settings["dataset"], folder / "shards")
    (folder / "log.jsonl").write_text("")
    inside = {"dataset": f"{folder}/shards/**/*.parquet", "overwrite_output_dir": True}
    with pytest.raises(ValueError, match="lies in the output folder, which is emptied"):
        train(configure("guide", **{**settings, **inside}))
    assert list(folder.rglob("*.parquet"))


def test_the_closing_entry_is_logged_before_the_last_checkpoint(settings: dict[str, Any]) -> None:
    run = training.Run(configure("guide", **settings))
    run.train()  # and not finished, as if it had been killed now
    run.earlier.release()
    resumed = train(configure("guide", **settings, resume_from_checkpoint="last"))
    assert ["train_runtime" in entry for entry in _log(resumed)].count(True) == 1
    assert (resumed / "eval_results.json").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "training_state.pt"])
def test_a_flipped_bit_is_noticed_when_a_run_goes_on(settings: dict[str, Any], finished: Path, name: str) -> None:
    path = finished / "checkpoint-6" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"checkpoint-6/{name} is damaged: it is not what was written"):
        train(configure("guide", **settings, resume_from_checkpoint=str(finished / "checkpoint-6")))


@pytest.mark.parametrize(
    "change",
    [
        {"progress": {"step": "six"}},
        {"progress": {"no": "progress"}},
        {"optimizer": {"state": {}, "param_groups": "none"}},
        {"optimizer": {}},
        {"unlogged": [1, 2]},
        {"unlogged": [("a", "b")]},
        {"config": {"seed": "42"}},
        {"rows": {"count": torch.ones(2)}},
    ],
    ids=str,
)
def test_a_state_that_does_not_fit_is_refused_in_words(
    settings: dict[str, Any], finished: Path, change: dict[str, Any]
) -> None:
    state = read_training_state(finished / "checkpoint-6")

    def save_model_files(unfinished: Path) -> None:
        for name in ("model.safetensors", "config.json", "preprocessor_config.json"):
            shutil.copy(finished / name, unfinished)

    strange = save_checkpoint(finished, 7, save_model_files, {**state, **change})
    with pytest.raises(
        ValueError,
        match=r"state.pt (does not fit this run|is not the state of)|seed '42'|was trained on other rows: tensor",
    ):
        train(configure("guide", **settings, resume_from_checkpoint=str(strange)))


def test_two_runs_do_not_write_to_one_folder(settings: dict[str, Any]) -> None:
    folder = train(configure("guide", **{**settings, "max_steps": 1}))
    code = (
        "import sys; from pathlib import Path; from segformer.training.output import RunLock\n"
        "lock = RunLock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    before = _weights(folder)
    other = programs.start("-c", code, folder, stdin=programs.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    for again in ({"overwrite_output_dir": True}, {"resume_from_checkpoint": "last"}):
        with pytest.raises(ValueError, match=f"another run is writing to {folder}"):
            train(configure("guide", **{**settings, **again, "max_steps": 1}))
    assert _weights(folder) == before
    other.communicate()
    RunLock(folder).release()  # it ended with the process


def test_training_works_in_a_thread_of_another_program(settings: dict[str, Any]) -> None:
    with ThreadPoolExecutor() as pool:
        folder = pool.submit(train, configure("guide", **{**settings, "max_steps": 1})).result()
    assert (folder / "model.safetensors").exists()


def test_a_log_that_cannot_be_written_names_the_file(settings: dict[str, Any]) -> None:
    run = training.Run(configure("guide", **settings))
    assert run.history.log
    run.history.log.path.unlink()
    run.history.log.path.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"cannot write to .*log.jsonl \(No space left on device\)"):
        run.history.log.add(1, 0.5, {"loss": 1.0})


def test_best_needs_saved_steps_that_are_evaluated(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"save_steps \(3\) to be a multiple of eval_steps \(2\)"):
        configure("guide", **{**settings, "eval_steps": 2, "load_best_model_at_end": True})


@pytest.fixture
def full_batch() -> dict[str, Tensor]:
    """Eight images whose labels have very different numbers of ignored pixels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 150, (8, 32, 32), generator=generator)
    for row in range(8):
        labels[row, : 4 * row] = 255
    return {"images": torch.randn(8, 3, 32, 32, generator=generator), "labels": labels}


def _one_step(
    small_checkpoint: Path, batch: dict[str, Tensor], **settings: Any
) -> tuple[Segformer, training.StepResult]:
    model = Segformer.from_pretrained(small_checkpoint)  # in eval mode, so that BatchNorm does not see the batch
    config = TrainConfig(device="cpu", learning_rate=1e-3, **settings)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return model, train_step(model, training.build_optimizer(model, config), scaler, batch, config)


def test_whoever_trains_a_model_in_eval_mode_is_warned(small_checkpoint: Path, full_batch: dict[str, Tensor]) -> None:
    with pytest.warns(UserWarning, match=r"the model is in eval mode; model\.train\(\) has it learn"):
        _one_step(small_checkpoint, full_batch)


def test_an_evaluation_leaves_every_module_in_its_mode(settings: dict[str, Any]) -> None:
    config = configure("guide", **settings)
    run = training.Run(config)
    run.model.train().encoder.stages[0].eval()
    modes = [module.training for module in run.model.modules()]
    means = run.model.decoder.norm.running_mean.clone()
    training.evaluate(run.model, run.eval_samples, config, torch.device("cpu"))
    training.predict_samples(run.model, run.eval_samples, config, torch.device("cpu"))
    assert modes == [module.training for module in run.model.modules()]
    assert torch.equal(means, run.model.decoder.norm.running_mean)


def test_an_encoder_alone_cannot_be_scored_and_no_classes_would_help(settings: dict[str, Any], tmp_path: Path) -> None:
    model = Segformer.from_pretrained(settings["checkpoint"])
    save_file({k: v for k, v in model.state_dict().items() if k.startswith("encoder")}, tmp_path / "model.safetensors")
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(Path(settings["checkpoint"]) / name, tmp_path)
    with pytest.raises(ValueError, match="has no decoder of ours, only an encoder, and tells no classes; train it"):
        train(configure("guide", **(settings | {"checkpoint": str(tmp_path), "eval_only": True})))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_label_maps_that_have_changed_since_are_told_of_when_a_run_is_gone_on_with(
    split: str, settings: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "data"
    shutil.copytree(settings["dataset"], data)
    settings = settings | {"dataset": str(data), "max_steps": 2, "eval_steps": 1, "save_steps": 1}
    folder = train(configure("guide", **settings))
    going_on = settings | {"output_dir": None, "resume_from_checkpoint": str(folder / "checkpoint-2"), "max_steps": 3}
    train(configure("guide", **going_on | {"output_dir": str(tmp_path / "same")}))
    assert "have changed" not in caplog.text
    (shard,) = (data / split).glob("*.parquet")
    table = pq.read_table(shard)
    annotations = table["annotation"].to_pylist()
    with Image.open(io.BytesIO(annotations[2]["bytes"])) as held, io.BytesIO() as stream:
        Image.fromarray(1 + np.asarray(held) % 150).save(stream, "PNG")
        annotations[2]["bytes"] = stream.getvalue()
    place = table.schema.get_field_index("annotation")
    column = pa.array(annotations, table.schema.field(place).type)
    pq.write_table(table.set_column(place, table.schema.field(place), column), shard)
    changed = train(configure("guide", **going_on | {"output_dir": str(tmp_path / "changed")}))
    progress = read_training_state(changed / "checkpoint-3")["progress"]
    assert (progress["best_step"] == 3) == (split == "validation")  # of scores of 0, the first is the best
    assert f"label maps to {'train on' if split == 'train' else 'score'} have changed since" in caplog.text


def test_accumulation_of_four_by_two_equals_a_batch_of_eight(
    small_checkpoint: Path, full_batch: dict[str, Tensor]
) -> None:
    whole, whole_result = _one_step(small_checkpoint, full_batch, per_device_train_batch_size=8)
    parts, parts_result = _one_step(
        small_checkpoint, full_batch, per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    torch.testing.assert_close(parts_result.loss, whole_result.loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(parts_result.grad_norm, whole_result.grad_norm, rtol=1e-5, atol=0)
    for (name, weight), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
        if "key_value.bias" in name:  # AdamW's first step is the sign of the gradient, and key biases have none
            continue
        torch.testing.assert_close(other, weight, rtol=1e-5, atol=1e-5, msg=name)


def test_loss_of_a_step_is_the_mean_over_its_valid_pixels(
    small_checkpoint: Path, full_batch: dict[str, Tensor]
) -> None:
    with torch.no_grad():
        logits = Segformer.from_pretrained(small_checkpoint)(full_batch["images"])
    upsampled = torch.nn.functional.interpolate(logits, (32, 32), mode="bilinear")
    expected = torch.nn.functional.cross_entropy(upsampled, full_batch["labels"], ignore_index=255)
    _, result = _one_step(small_checkpoint, full_batch, per_device_train_batch_size=2)
    torch.testing.assert_close(result.loss, expected, rtol=1e-5, atol=0)


def test_loss_of_a_step_may_be_the_mean_over_all_of_its_pixels_ignored_ones_counting_0(
    small_checkpoint: Path, full_batch: dict[str, Tensor]
) -> None:
    with torch.no_grad():
        logits = Segformer.from_pretrained(small_checkpoint)(full_batch["images"])
    upsampled = torch.nn.functional.interpolate(logits, (32, 32), mode="bilinear")
    expected = torch.nn.functional.cross_entropy(upsampled, full_batch["labels"], ignore_index=255, reduction="none")
    assert expected[full_batch["labels"] == 255].sum() == 0
    for size in (2, 8):  # however many passes it takes
        _, result = _one_step(
            small_checkpoint, full_batch, per_device_train_batch_size=size, loss_mean="all", dataloader_drop_last=True
        )
        torch.testing.assert_close(result.loss, expected.mean(), rtol=1e-5, atol=0)


def test_a_batch_without_labels_changes_nothing_and_costs_nothing(
    small_checkpoint: Path, full_batch: dict[str, Tensor]
) -> None:
    full_batch["labels"].fill_(255)
    model, result = _one_step(small_checkpoint, full_batch)
    assert result.loss == 0
    assert result.grad_norm == 0
    for weight, start in zip(model.parameters(), Segformer.from_pretrained(small_checkpoint).parameters(), strict=True):
        assert torch.equal(weight, start)


def test_gradients_are_clipped_to_max_grad_norm(small_checkpoint: Path, full_batch: dict[str, Tensor]) -> None:
    model, result = _one_step(small_checkpoint, full_batch, max_grad_norm=0.01)
    norm = torch.stack([weight.grad.norm() for weight in model.parameters() if weight.grad is not None]).norm()
    assert result.grad_norm > 0.01
    torch.testing.assert_close(norm, torch.tensor(0.01), rtol=1e-3, atol=0)


def test_bf16_on_the_cpu_trains_and_keeps_float32_weights(settings: dict[str, Any]) -> None:
    folder = train(configure("guide", **settings, amp="bf16"))
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.float32, torch.int64}
    assert all(math.isfinite(entry["loss"]) for entry in _log(folder) if "loss" in entry)


@pytest.mark.parametrize(
    ("amp", "device", "dtype"),
    [
        ("auto", "cpu", None),
        ("auto", "mps", None),
        ("off", "cuda", None),
        ("bf16", "cpu", torch.bfloat16),
        ("fp16", "cuda", torch.float16),
    ],
)
def test_amp_chooses_the_precision_of_the_device(amp: str, device: str, dtype: torch.dtype | None) -> None:
    assert amp_dtype(amp, torch.device(device)) == dtype


@pytest.mark.parametrize(("amp", "device"), [("fp16", "cpu"), ("fp16", "mps"), ("bf16", "mps")])
def test_amp_that_a_device_has_not_is_refused(amp: str, device: str) -> None:
    with pytest.raises(ValueError, match=f"amp is {amp} but the device is {device}"):
        amp_dtype(amp, torch.device(device))


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_schedule_is_that_of_transformers(kind: str) -> None:
    warmup, total = 7, 40
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=6e-5)
    name = "constant_with_warmup" if kind == "constant" else kind
    scheduler = transformers.get_scheduler(name, optimizer, warmup, total)
    config = TrainConfig(lr_scheduler_type=kind, warmup_steps=warmup)
    for step in range(1, total + 1):
        assert training.learning_rate(step, total, config) == pytest.approx(
            scheduler.get_last_lr()[0], rel=1e-12, abs=1e-20
        )
        optimizer.step()
        scheduler.step()


def test_each_epoch_has_the_order_of_trainer_and_every_row_once() -> None:
    places = list(StepSampler(num_rows=10, rows_per_step=4, seed=42, first_step=1, last_step=6))
    for epoch in (0, 1):
        rows = [row for step in places[3 * epoch : 3 * epoch + 3] for _, row in step]
        assert rows == torch.randperm(10, generator=torch.Generator().manual_seed(42 + epoch)).tolist()
    assert [epoch for step in places for epoch, _ in step] == [0] * 10 + [1] * 10


def test_order_from_the_middle_is_the_rest_of_the_whole_order() -> None:
    whole = list(StepSampler(10, 4, 42, 1, 9))
    assert list(StepSampler(10, 4, 42, 5, 9)) == whole[4:]


def test_without_short_steps_every_step_is_full_and_other_rows_are_left_out_of_every_epoch() -> None:
    short = list(StepSampler(10, 4, 42, 1, 30))
    full = list(StepSampler(10, 4, 42, 1, 20, drop_last=True))
    assert full == [step for step in short if len(step) == 4]
    left_out = [set(range(10)) - {row for step in full[first : first + 2] for _, row in step} for first in (0, 2, 4)]
    assert len(set(map(frozenset, left_out))) > 1


def test_without_short_steps_the_order_from_the_middle_is_the_rest_of_the_whole_order() -> None:
    whole = list(StepSampler(10, 4, 42, 1, 9, drop_last=True))
    assert list(StepSampler(10, 4, 42, 4, 9, drop_last=True)) == whole[3:]


def test_without_short_steps_a_run_counts_the_steps_epochs_and_images_that_it_takes() -> None:
    config = configure("guide", num_train_epochs=3.0, per_device_train_batch_size=4, dataloader_drop_last=True)
    plan = Plan.of(replace(config, eval_strategy="epoch"), num_rows=10)
    assert plan.total_steps == 6
    assert [plan.is_evaluated(step) for step in range(1, 7)] == [False, True] * 3
    assert [plan.epoch(step) for step in (1, 2, 6)] == [0.5, 1.0, 3.0]
    assert plan.num_images(range(1, 7)) == 24
    assert Plan.of(configure("paper"), 20_210).num_images(range(1, 160_001)) == 16 * 160_000


def test_rows_that_make_no_full_step_are_refused_before_the_folder_is_touched(settings: dict[str, Any]) -> None:
    settings |= {"per_device_train_batch_size": 20, "dataloader_drop_last": True}
    with pytest.raises(
        ValueError, match=r"^\d+ rows to train on make no step of 20, and dataloader_drop_last .*; lower"
    ):
        train(configure("guide", **settings))
    assert not Path(settings["output_dir"]).exists()
    assert train(configure("guide", **{**settings, "eval_only": True})) == Path(settings["output_dir"])


def test_a_run_without_short_steps_resumes_exactly(settings: dict[str, Any], tmp_path: Path) -> None:
    settings |= {"per_device_train_batch_size": 4, "dataloader_drop_last": True}  # of 10 rows: two steps an epoch
    whole = train(configure("guide", **settings))
    settings |= {"output_dir": str(tmp_path / "part"), "resume_from_checkpoint": str(whole / "checkpoint-3")}
    assert _weights(train(configure("guide", **settings))) == _weights(whole)


def test_jitter_depends_on_seed_epoch_and_row_alone(settings: dict[str, Any]) -> None:
    config = configure("guide", **settings)
    samples, _ = training.build_samples(config, ImageProcessor(size=(32, 32)))
    other_seed, _ = training.build_samples(configure("guide", **settings, seed=7), ImageProcessor(size=(32, 32)))
    torch.manual_seed(123)
    again = samples[1, 3]["images"]
    assert torch.equal(samples[1, 3]["images"], again)
    assert not torch.equal(samples[2, 3]["images"], again)
    assert not torch.equal(other_seed[1, 3]["images"], again)


@pytest.mark.parametrize("resolution", ["processed", "original"])
def test_evaluation_equals_scoring_every_image_by_hand(
    settings: dict[str, Any], small_checkpoint: Path, resolution: str
) -> None:
    config = configure("guide", **settings, eval_resolution=resolution, per_device_eval_batch_size=3)
    model = Segformer.from_pretrained(small_checkpoint)
    processor = ImageProcessor.from_pretrained(small_checkpoint)
    _, samples = training.build_samples(config, processor)
    results = training.evaluate(model, samples, config, torch.device("cpu"))
    matrix = ConfusionMatrix(150)
    losses, pixels = 0.0, 0
    for row in range(len(samples)):
        image, label_map = samples.dataset[row]
        images, labels = processor(image, label_map)
        assert label_map is not None
        assert labels is not None
        with torch.no_grad():
            logits = model(images[None])
        scored = labels.numpy() if resolution == "processed" else processor.reduce_labels(np.array(label_map))
        matrix.update(fullres.plain_argmax(logits, scored.shape)[0], scored.astype(np.int64))
        losses += float(fullres.plain_cross_entropy(logits, labels[None]))
        pixels += int((labels != 255).sum())
    scores = matrix.scores()
    assert results["eval_mean_iou"] == pytest.approx(scores.mean_iou, nan_ok=True)
    assert results["eval_overall_accuracy"] == pytest.approx(scores.overall_accuracy)
    np.testing.assert_allclose(results["eval_per_category_iou"], scores.per_category_iou)
    assert results["eval_loss"] == pytest.approx(losses / pixels, rel=1e-5)


def test_eval_only_scores_the_checkpoint_and_trains_nothing(settings: dict[str, Any]) -> None:
    folder = train(configure("guide", **settings, eval_only=True))
    assert (folder / "eval_results.json").exists()
    assert not list(folder.glob("checkpoint-*"))
    assert [entry["step"] for entry in _log(folder)] == [0]


def test_test_size_is_held_out_when_no_eval_split_is_given(settings: dict[str, Any]) -> None:
    config = configure("guide", **{**settings, "eval_split": None, "test_size": 0.2})
    train_samples, eval_samples = training.build_samples(config, ImageProcessor(size=(32, 32)))
    names = [{samples.name(row) for row in range(len(samples))} for samples in (train_samples, eval_samples)]
    assert [len(part) for part in names] == [8, 2]
    assert not names[0] & names[1]


def test_non_finite_loss_stops_the_run_and_names_step_rows_and_rate(
    settings: dict[str, Any], small_checkpoint: Path, tmp_path: Path
) -> None:
    weights = load_file(small_checkpoint / "model.safetensors")
    weights["decode_head.classifier.weight"][3] = 3e38  # a number still, which no logit stands
    broken = tmp_path / "broken"
    Segformer.from_pretrained(small_checkpoint).save_pretrained(broken)
    ImageProcessor.from_pretrained(small_checkpoint).save_pretrained(broken)
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        FloatingPointError,
        match=r"loss (nan|inf), .* at step 1 \(learning rate 0.001, rows train_\d, train_\d\)",
    ):
        train(configure("guide", **{**settings, "checkpoint": str(broken)}))


def test_a_folder_that_holds_a_run_is_not_overwritten_unasked(settings: dict[str, Any]) -> None:
    folder = train(configure("guide", **{**settings, "max_steps": 1}))
    before = _weights(folder)
    with pytest.raises(ValueError, match="--overwrite-output-dir"):
        train(configure("guide", **{**settings, "max_steps": 2}))
    assert _weights(folder) == before
    train(configure("guide", **{**settings, "max_steps": 2}, overwrite_output_dir=True))
    assert _weights(folder) != before


def test_overwriting_spares_a_folder_that_holds_no_run(settings: dict[str, Any]) -> None:
    precious = Path(settings["output_dir"]) / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("years of work")
    with pytest.raises(ValueError, match="no run"):
        train(configure("guide", **settings, overwrite_output_dir=True))
    assert precious.exists()


def test_runs_without_a_name_get_folders_of_their_own(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    nameless = {**settings, "output_dir": None, "max_steps": 1}
    assert [train(configure("guide", **nameless)) for _ in range(2)] == [Path("runs/guide-1"), Path("runs/guide-2")]


def test_every_setting_has_a_flag_with_its_name() -> None:
    flags = {
        "recipe": ["--recipe", "guide"],
        "reduce_labels": ["--no-reduce-labels"],
        "per_device_train_batch_size": ["--per-device-train-batch-size", "4"],
        "resume_from_checkpoint": ["--resume-from-checkpoint"],
    }
    config = parse_arguments([word for flag in flags.values() for word in flag])
    assert config.recipe == "guide"
    assert not config.reduce_labels
    assert config.per_device_train_batch_size == 4
    assert config.resume_from_checkpoint == "last"


def test_toy_is_the_recipe_of_a_bare_command_and_none_means_no_checkpoint() -> None:
    assert parse_arguments([]) == configure("toy")
    assert parse_arguments(["--recipe", "guide", "--checkpoint", "none"]).checkpoint is None


def test_guide_recipe_has_the_settings_of_the_guide() -> None:
    guide = configure("guide")
    assert (guide.dataset, guide.split, guide.test_size) == ("scene_parse_150", "train[:50]", 0.2)
    assert (guide.checkpoint, guide.learning_rate, guide.num_train_epochs) == ("nvidia/mit-b0", 6e-5, 50)
    assert (guide.per_device_train_batch_size, guide.per_device_eval_batch_size) == (2, 2)
    assert (guide.eval_steps, guide.save_steps, guide.save_total_limit, guide.logging_steps) == (20, 20, 3, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eval_steps", 0),
        ("save_total_limit", 0),
        ("per_device_train_batch_size", -1),
        ("learning_rate", -1e-3),
        ("learning_rate", math.nan),
        ("amp", "fp8"),
        ("variant", "b9"),
        ("lr_scheduler_type", "steps"),
        ("warmup_steps", -1),
        ("num_labels", 0),
        ("test_size", 1.0),
        ("max_steps", "20"),
        ("eval_steps", 2.5),
        ("eval_flip", 1),
        ("seed", True),
    ],
)
def test_wrong_settings_are_refused_by_name_before_any_work(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} is"):
        TrainConfig(**{name: value})


def test_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'gide'; it is one of toy, guide"):
        configure("gide")


def test_every_setting_explains_itself() -> None:
    assert all(setting.metadata["help"] for setting in fields(TrainConfig))


def test_a_checkpoint_of_another_variant_than_asked_for_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    Segformer(VARIANTS["b1"](id2label=ID2LABEL)).save_pretrained(tmp_path / "b1")
    ImageProcessor(size=(32, 32)).save_pretrained(tmp_path / "b1")
    with pytest.raises(ValueError, match="holds variant b1, this run asks for b0"):
        train(configure("guide", **{**settings, "checkpoint": str(tmp_path / "b1"), "variant": "b0"}))


def test_training_moves_the_running_statistics_of_batch_norm(settings: dict[str, Any], small_checkpoint: Path) -> None:
    trained = Segformer.from_pretrained(train(configure("guide", **{**settings, "max_steps": 1})))
    start = Segformer.from_pretrained(small_checkpoint)
    assert not torch.equal(trained.decoder.norm.running_mean, start.decoder.norm.running_mean)


def test_weight_decay_spares_norms_and_biases(small_checkpoint: Path) -> None:
    model = Segformer.from_pretrained(small_checkpoint)
    groups = training.build_optimizer(model, TrainConfig(weight_decay=0.1)).param_groups
    decay = {id(weight): group["weight_decay"] for group in groups for weight in group["params"]}
    for name, weight in model.named_parameters():
        assert decay[id(weight)] == (0.0 if "norm" in name or name.endswith("bias") else 0.1), name


def test_eval_only_refuses_to_touch_a_run(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="eval_only"):
        configure("guide", **settings, eval_only=True, resume_from_checkpoint="last")


def test_resuming_into_a_folder_that_holds_another_run_is_refused(
    settings: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    second = train(configure("guide", **{**settings, "output_dir": str(tmp_path / "second")}))
    before = (second / "log.jsonl").read_bytes()
    with pytest.raises(ValueError, match="not empty"):
        train(
            configure(
                "guide",
                **{**settings, "output_dir": str(second), "resume_from_checkpoint": str(finished / "checkpoint-3")},
            )
        )
    assert (second / "log.jsonl").read_bytes() == before


def test_a_log_that_ends_in_half_a_line_does_not_stop_a_resumed_run(settings: dict[str, Any], finished: Path) -> None:
    with (finished / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "eval_lo')
    resumed = train(configure("guide", **settings, resume_from_checkpoint="last"))
    assert {entry["step"] for entry in _log(resumed)} == {1, 2, 3, 4, 5, 6}


def test_later_checkpoints_of_a_branch_that_was_left_are_set_aside(settings: dict[str, Any], finished: Path) -> None:
    train(
        configure(
            "guide",
            **{**settings, "save_steps": 4, "resume_from_checkpoint": str(finished / "checkpoint-3")},
        )
    )
    assert {path.name for path in finished.glob("*checkpoint-*")} == {
        "checkpoint-3",
        "checkpoint-4",
        "checkpoint-6",
        "abandoned-checkpoint-6",
    }


def test_leftovers_of_cut_off_saves_go_when_a_run_goes_on(settings: dict[str, Any], finished: Path) -> None:
    for name in ("unfinished-checkpoint-9", "removed-checkpoint-2"):
        (finished / name).mkdir()
    train(configure("guide", **settings, resume_from_checkpoint="last"))
    assert list(finished.glob("unfinished-*")) + list(finished.glob("removed-*")) == []


def test_of_several_broken_steps_the_first_is_named(settings: dict[str, Any]) -> None:
    run = training.Run(configure("guide", **settings))
    run.history.progress.step = 4
    good, bad = (training.StepResult(torch.tensor(loss), torch.tensor(1.0)) for loss in (1.0, math.inf))
    run.history.unread = [good, good, bad, bad]
    with pytest.raises(FloatingPointError, match="loss inf, gradient norm 1 at step 3"):
        run.history.log_steps(0.1, run.names_of)


def test_a_step_whose_gradients_overflow_is_skipped_and_lowers_the_scale(settings: dict[str, Any]) -> None:
    run = training.Run(configure("guide", **{**settings, "max_steps": 5, "eval_steps": 5, "save_steps": 5}))
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    weight = run.model.decoder.classifier.weight
    weight.register_hook(lambda gradient: gradient * (math.inf if run.history.progress.step in (1, 3) else 1.0))
    seen = [weight.detach().clone()]
    log_steps = run.history.log_steps

    def watch(*arguments: Any) -> None:
        seen.append(weight.detach().clone())
        log_steps(*arguments)

    run.history.log_steps = watch  # type: ignore[method-assign]
    run.train()
    moved = [not torch.equal(before, after) for before, after in pairwise(seen)]
    assert moved == [False, True, False, True, True]
    assert run.scaler.get_scale() == 2.0**14
    assert [entry["grad_norm"] is None for entry in _log(run.output_dir) if "loss" in entry] == [not m for m in moved]


def test_a_resumed_run_goes_on_with_the_scale_it_had(settings: dict[str, Any]) -> None:
    run = training.Run(configure("guide", **settings))
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**7, growth_interval=4)
    run.train()
    assert run.scaler.get_scale() == 2.0**8  # doubled once, after four steps
    resumed = training.Run(configure("guide", **settings, resume_from_checkpoint="last"))
    resumed.scaler = torch.amp.GradScaler("cpu", growth_interval=4)
    parts = resumed.model, resumed.optimizer, resumed.scaler, resumed.history
    resumed.earlier.restore(*parts, resumed.rows, resumed.about)
    assert resumed.scaler.state_dict() == run.scaler.state_dict()


def test_a_broken_model_is_not_saved(settings: dict[str, Any]) -> None:
    run = training.Run(configure("guide", **settings))
    with torch.no_grad():
        run.model.decoder.classifier.bias[0] = math.nan
    with pytest.raises(FloatingPointError, match=r"decoder.classifier.bias is not finite"):
        run.save()
    assert not find_checkpoints(run.output_dir)


@pytest.mark.parametrize("side", [1, 28])
def test_images_too_small_for_the_attention_are_refused_by_size(settings: dict[str, Any], side: int) -> None:
    with pytest.raises(ValueError, match=f"image_size is {side}"):
        train(configure("guide", **settings, image_size=side))


def test_a_model_without_checkpoints_is_not_gone_on_with(settings: dict[str, Any], small_checkpoint: Path) -> None:
    before = _weights(small_checkpoint)
    with pytest.raises(ValueError, match="no checkpoint to go on from"):
        train(configure("guide", **{**settings, "output_dir": str(small_checkpoint), "resume_from_checkpoint": "last"}))
    assert _weights(small_checkpoint) == before


def test_a_failed_start_leaves_the_run_that_it_was_to_replace(settings: dict[str, Any], finished: Path) -> None:
    before = _weights(finished)
    with pytest.raises(FileNotFoundError, match="no-such-shards"):
        train(configure("guide", **{**settings, "dataset": "no-such-shards"}, overwrite_output_dir=True))
    assert _weights(finished) == before


@pytest.mark.parametrize("state", [{}, {"config": {}}])
def test_a_foreign_training_state_is_refused_with_what_it_lacks(
    settings: dict[str, Any], finished: Path, state: dict[str, Any]
) -> None:
    def save_model_files(unfinished: Path) -> None:
        for name in ("model.safetensors", "config.json", "preprocessor_config.json"):
            shutil.copy(finished / name, unfinished)

    foreign = save_checkpoint(finished, 7, save_model_files, state)
    with pytest.raises(ValueError, match=r"training_state.pt is not the state of a training run: it lacks .*optimizer"):
        train(configure("guide", **{**settings, "output_dir": None}, resume_from_checkpoint=str(foreign)))


def test_a_device_that_is_not_there_is_named(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="device is 'warp'"):
        train(configure("guide", **{**settings, "device": "warp"}))


def test_weights_can_be_read_by_whoever_may_read_the_folder(small_checkpoint: Path) -> None:
    modes = {(small_checkpoint / name).stat().st_mode for name in ("config.json", "model.safetensors")}
    assert len(modes) == 1

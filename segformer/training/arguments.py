"""From the command line to settings: flags over those of a recipe, of an earlier run, or of a file."""

from __future__ import annotations

import argparse
import glob
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from segformer.console import FlagParser
from segformer.training.checkpoints import STATE_NAME, newest_checkpoint, read_training_state
from segformer.training.description import DESCRIPTION_NAME, PATHS, RunDescription, read_object
from segformer.training.recipes import GROUPS, RECIPES, TrainConfig, configure
from segformer.training.recorded import run_of
from segformer.training.settings import add_flags

_FIELDS = {each.name: each for each in fields(TrainConfig)}
_OF_LABELS = ("num_labels", "label_names", "reduce_labels", "ignore_index", "binary_masks")
_OF_EVALUATION = (  # what a run's own scores were taken with
    *("recipe", "dataset", "split", "eval_split", "test_size", "seed", "image_size", "resize_mode", *_OF_LABELS),
    *("per_device_eval_batch_size", "eval_resolution", "eval_window", "eval_stride", "eval_flip", "eval_scales"),
)
_ALL_ROWS = {"split": "train", "eval_split": "auto"}  # of data that no recipe and no run knows the splits of

logger = logging.getLogger(__name__)


def parse_arguments(arguments: Sequence[str] | None = None) -> TrainConfig:
    """Settings from the command line: one flag for every field of TrainConfig, over what it starts from.

    That is the run that is gone on with, the file of ``--config``, for ``--eval-only`` what the checkpoint's own run
    recorded, or a recipe. A bare command is the toy's; where data or a checkpoint is named, the recipe chosen is said.
    """
    parser = _parser(_recipe_of(arguments))
    given = vars(parser.parse_args(arguments))
    if given.get("checkpoint") == "none":
        given["checkpoint"] = None
    try:
        return settle(given)
    except (ValueError, OSError) as error:
        parser.error(str(error))


def _recipe_of(arguments: Sequence[str] | None) -> str:
    """The recipe whose values the help is to tell."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--recipe", "--dataset", "--checkpoint"):
        parser.add_argument(flag, nargs="?")
    parser.add_argument("--eval-only", action="store_true")
    first, _ = parser.parse_known_args(arguments)
    return first.recipe if first.recipe in RECIPES else _recipe_for(vars(first))


def _parser(recipe: str) -> FlagParser:
    parser = FlagParser(
        usage="train.py [--recipe RECIPE] [--dataset DATASET] [--checkpoint CHECKPOINT] [flags]",
        description=f"Fine-tune SegFormer. The defaults below are those of --recipe {recipe}.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--recipe", choices=tuple(RECIPES), help="the settings to start from")
    parser.add_argument("--config", metavar="FILE", help="take the settings of a run from its run.json")
    resume = _FIELDS["resume_from_checkpoint"].metadata["help"]
    parser.add_argument("--resume-from-checkpoint", nargs="?", const="last", metavar="PATH", help=resume)
    add_flags(parser, TrainConfig, ("recipe", "resume_from_checkpoint"), configure(recipe), GROUPS)
    return parser


def settle(given: Mapping[str, Any]) -> TrainConfig:
    """The settings that flags ask for, and for what they leave open those of where they start from."""
    settings = dict(given)
    file = settings.pop("config", None)
    if settings.get("eval_only") and "split" in settings:
        settings.setdefault("eval_split", settings["split"])  # of rows that are named, all are scored
    if "resume_from_checkpoint" in settings:
        start = _settings_gone_on_with(settings)
    elif file is not None:
        start = _settings_in(Path(file))
    elif settings.get("eval_only"):
        start = _settings_recorded_with(settings)
    else:
        start = {}
    recipe = settings.pop("recipe", None) or start.pop("recipe", None)
    start.pop("recipe", None)
    if recipe is None:
        recipe = _recipe_for(settings)
        if recipe != "toy" or settings.get("dataset") == "toy":
            logger.info("taking --recipe %s, as none is named", recipe)
    for name in PATHS:  # a run.json has of a path only its last folder or file
        of_a_run_json = "resume_from_checkpoint" not in settings and name not in settings
        if of_a_run_json and _seems_gone(start.get(name), name):
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"the run was made with {name} {start[name]!r}, which is not here; name it by {flag}")
    return configure(recipe, start, **settings)


def _recipe_for(settings: Mapping[str, Any]) -> str:
    """The recipe of a command that names none."""
    dataset = settings.get("dataset")
    if dataset == "toy" or (dataset is None and settings.get("checkpoint") is None):
        return "toy"
    own = dataset not in (None, "scene_parse_150") and not settings.get("eval_only")
    return "own" if own else "guide"


def _settings_gone_on_with(settings: dict[str, Any]) -> dict[str, Any]:
    """Those of the checkpoint. Flags are laid over them; which of them may differ is looked at when the run starts."""
    named = settings["resume_from_checkpoint"]
    folder = Path(settings["output_dir"]) if named == "last" and settings.get("output_dir") else Path(named)
    if (folder / STATE_NAME).is_file():
        checkpoint: Path | None = folder
    else:
        checkpoint = newest_checkpoint(folder) if folder.is_dir() else None
        if checkpoint is None and named != "last":
            lacks = "is a file" if folder.is_file() else "holds no checkpoint to go on from"
            raise FileNotFoundError(f"{folder} {lacks}; --resume-from-checkpoint takes a run's folder, or one in it")
        if named != "last" and settings.get("output_dir") in (None, named):  # the run itself, gone on with in place
            settings["resume_from_checkpoint"], settings["output_dir"] = "last", str(folder)
        elif named != "last":
            settings["resume_from_checkpoint"] = str(checkpoint)
    if checkpoint is None:
        return {}
    state = read_training_state(checkpoint)
    saved = _known(state["config"])
    if saved:  # by a release without some of the settings, perhaps, which did what their defaults do
        saved = {name: each.default for name, each in _FIELDS.items()} | saved
    saved |= _moved(saved, state.get("paths"), settings)
    return {name: value for name, value in saved.items() if _FIELDS[name].metadata.get("on_resume") != "free"}


def local_paths(config: TrainConfig) -> dict[str, str]:
    """Where on this machine a run's data lies, wherever it is gone on with from."""
    named = {name: getattr(config, name) for name in ("dataset", "label_names")}
    return {name: os.path.abspath(path) for name, path in named.items() if path and _is_there(path)}


def _moved(saved: Mapping[str, Any], paths: object, settings: Mapping[str, Any]) -> dict[str, str]:
    """The settings that named something on this machine by another way than leads there from the present folder.

    Raises FileNotFoundError for what is neither where it was nor where the same way leads.
    """
    found = {}
    for name in ("dataset", "label_names"):
        path, value = paths.get(name) if isinstance(paths, dict) else None, saved.get(name)
        if name in settings or not isinstance(path, str) or not isinstance(value, str):
            continue
        if _is_there(path) and os.path.abspath(value) != path:
            found[name] = path
        elif not _is_there(path) and not _is_there(value):
            flag = "--" + name.replace("_", "-")
            raise FileNotFoundError(
                f"the run was made with {flag} {value}, which is not here, nor where it was, {path}; name it by {flag}"
            )
    return found


def _is_there(path: str) -> bool:
    return os.path.exists(path) or bool(glob.glob(path))


def _settings_in(path: Path) -> dict[str, Any]:
    """The settings in a file: a run's run.json, or just an object of settings."""
    if path.is_dir():
        path = path / DESCRIPTION_NAME
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; --config takes the {DESCRIPTION_NAME} of a run")
    held = read_object(path)
    if not held:
        raise ValueError(f"{path} holds no settings; --config takes the {DESCRIPTION_NAME} of a run")
    settings = _without_shortened(held) if "settings" in held else held
    unknown = sorted(set(settings) - set(_FIELDS)) if isinstance(settings, dict) else [str(settings)]
    if unknown:
        raise ValueError(f"{path} has {unknown[0]!r}, which is no setting; --config takes a run's {DESCRIPTION_NAME}")
    return {name: value for name, value in settings.items() if _FIELDS[name].metadata.get("on_resume") != "free"}


def _settings_recorded_with(settings: Mapping[str, Any]) -> dict[str, Any]:
    """How the run that made a checkpoint was scored, where its folder or that of its run tells."""
    run = run_of(settings["checkpoint"]) if settings.get("checkpoint") else RunDescription()
    recorded, named = _known(_without_shortened(asdict(run))), settings.get("dataset")
    if not recorded:
        return dict(_ALL_ROWS) if "recipe" not in settings and named not in (None, "toy", "scene_parse_150") else {}
    wanted = _OF_LABELS if "recipe" in settings else _OF_EVALUATION  # of a recipe that is named, all else holds
    kept = {name: recorded[name] for name in wanted if name in recorded}
    is_another = named is not None and recorded.get("dataset") not in (named, Path(named).name)
    if is_another and "recipe" not in settings:  # which has splits of its own
        kept |= _ALL_ROWS
    if run.labels and (is_another or _seems_gone(recorded.get("label_names"), "label_names")):
        kept = {name: kept[name] for name in kept if name not in _OF_LABELS}  # which the checkpoint knows itself
    logger.info("scoring as the run of %s was scored; flags change it", settings["checkpoint"])
    return kept


def _without_shortened(held: Mapping[str, Any]) -> Any:
    """The settings of a run.json; of those that were paths only the last name is told, which may be another's here."""
    settings, shortened = held.get("settings", {}), held.get("shortened", [])
    if not isinstance(settings, dict) or not isinstance(shortened, list):
        return settings
    return {name: _Shortened(value) if name in shortened else value for name, value in settings.items()}


class _Shortened(str):
    """What is left of a path."""


def _known(settings: object) -> dict[str, Any]:
    held = settings if isinstance(settings, dict) else {}
    return {name: value for name, value in held.items() if name in _FIELDS}


def _seems_gone(value: object, name: str) -> bool:
    """Whether a setting was a path that is not to be found: no name of the Hub, no word that stands for something."""
    words = {"dataset": ("toy", "scene_parse_150")}.get(name, ())
    if isinstance(value, _Shortened):
        return True
    return isinstance(value, str) and value not in words and "/" not in value and not Path(value).exists()

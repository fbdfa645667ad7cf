"""Settings that know their rules: what they take, what they say, and what a resumed run may change."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from typing import Any

import pytest

from segformer.console import FlagParser
from segformer.training.settings import (
    add_flags,
    changeable,
    check_resumable,
    check_settings,
    per_start,
    setting,
)


@dataclass(frozen=True)
class Settings:
    shape: str = setting("linear", "of the schedule", ("linear", "cosine"))
    steps: int = setting(3, "to train for", at_least=1)
    share: float = setting(0.5, "to hold out: 50 % of all", at_least=0, below=1)
    limit: int | None = changeable(None, "of checkpoints", at_least=1)
    flip: bool = setting(False, "mirror photos too")
    folder: str | None = per_start(None, "to write to")

    def __post_init__(self) -> None:
        check_settings(self)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shape": "poly"}, "shape is 'poly'; it is one of linear, cosine"),
        ({"steps": 0}, "steps is 0; it must be at least 1, below 2147483648"),
        ({"steps": 2**31}, "steps is 2147483648; it must be at least 1, below 2147483648"),
        ({"steps": 2.0}, "steps is 2.0; it must be a whole number"),
        ({"steps": True}, "steps is True; it must be a whole number"),
        ({"steps": None}, "steps is None; it must be a whole number"),
        ({"share": 1}, "share is 1; it must be at least 0, below 1"),
        ({"share": float("nan")}, "share is nan; it must be at least 0, below 1"),
        ({"share": "much"}, "share is 'much'; it must be a number"),
        ({"limit": 0}, "limit is 0; it must be at least 1"),
        ({"flip": 1}, "flip is 1; it must be True or False"),
        ({"folder": 3}, "folder is 3; it must be a text"),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_with_its_name_and_its_rule(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Settings(**values)


def test_none_and_whole_numbers_for_numbers_are_taken() -> None:
    assert Settings(limit=None, share=0).share == 0


def parsed(*words: str) -> dict[str, Any]:
    parser = FlagParser(argument_default=argparse.SUPPRESS)
    add_flags(parser, Settings, skip=("folder",))
    return vars(parser.parse_args(words))


def test_flags_have_the_types_of_their_fields() -> None:
    words = ["--steps", "7", "--share", "0.25", "--limit", "2", "--no-flip", "--shape", "cosine"]
    assert parsed(*words) == {"steps": 7, "share": 0.25, "limit": 2, "flip": False, "shape": "cosine"}


@pytest.mark.parametrize("words", [["--stepz", "1"], ["--steps", "many"], ["--folder", "a"], ["--shape", "poly"]])
def test_a_mistake_on_the_command_line_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed(*words)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")


def test_percent_signs_do_not_break_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("--help")
    assert "50 % of all" in capsys.readouterr().out


def test_what_makes_another_run_is_refused_and_what_does_not_is_told(caplog: pytest.LogCaptureFixture) -> None:
    saved = {"shape": "linear", "steps": 3, "limit": 5, "folder": "a", "gone": 1}
    with caplog.at_level(logging.INFO):
        check_resumable(Settings(limit=7, folder="b"), saved)
    assert caplog.messages == ["limit is now 7, it was 5"]
    with pytest.raises(ValueError, match="the checkpoint was trained with steps 3, this run asks for 4"):
        check_resumable(Settings(steps=4), saved)


def test_a_setting_younger_than_the_checkpoint_had_its_default() -> None:
    check_resumable(Settings(), {"shape": "linear"})
    with pytest.raises(ValueError, match="the checkpoint was trained with flip False, this run asks for True"):
        check_resumable(Settings(flip=True), {"shape": "linear"})

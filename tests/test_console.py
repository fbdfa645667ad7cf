"""How the commands listen: underscores, mistyped flags, and one line for what is wrong."""

from __future__ import annotations

import argparse

import pytest

from segformer.console import FlagParser, nearest_flag, one_line

FLAGS = {
    "--learning-rate": [],
    "--lr-scheduler-type": ["linear", "cosine"],
    "--per-device-train-batch-size": [],
    "--num-train-epochs": [],
    "--amp": ["auto", "bf16", "fp16"],
    "--output-dir": [],
}


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--lr", "--learning-rate"),
        ("--epochs", "--num-train-epochs"),
        ("--batch-size", "--per-device-train-batch-size"),
        ("--fp16", "--amp fp16"),
        ("--per-device", "--per-device-train-batch-size"),
        ("--output-dri", "--output-dir"),
        ("--zebra", None),
    ],
)
def test_a_mistyped_flag_is_answered_with_what_was_probably_meant(typed: str, meant: str | None) -> None:
    assert nearest_flag(typed, FLAGS) == meant


def parser() -> FlagParser:
    made = FlagParser()
    made.add_argument("--learning-rate", type=float)
    made.add_argument("photos", nargs="*")
    return made


def test_underscores_count_as_dashes_in_flags_and_nowhere_else() -> None:
    options = parser().parse_args(["--learning_rate=1e-3", "my_photo.jpg"])
    assert options == argparse.Namespace(learning_rate=1e-3, photos=["my_photo.jpg"])


def test_no_flag_is_guessed_from_its_beginning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(["--learning", "1"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: there is no --learning; did you mean --learning-rate?\n"


def test_what_may_stand_in_the_name_of_a_file_does_not_break_a_line() -> None:
    assert one_line(" a\nb\u2028c ") == r"a\nb\u2028c"

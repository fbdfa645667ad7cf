"""How the commands speak and listen: plain lines, one for each thing, and flags that say what may have been meant."""

from __future__ import annotations

import argparse
import logging
import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn


def speak_plainly() -> None:
    """Have log messages appear as they are, but not every request of the Hub's client, whose addresses are signed."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for client in ("httpx", "httpx2"):
        logging.getLogger(client).setLevel(logging.WARNING)
    for stream in (sys.stdout, sys.stderr):  # a console without UTF-8 shows what it can instead of ending the run
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def one_line(text: str) -> str:
    """A message without line breaks and other control characters, which the name of a file may hold."""
    unseen = {"Cc", "Cs", "Zl", "Zp"}
    return "".join(ascii(letter)[1:-1] if unicodedata.category(letter) in unseen else letter for letter in text.strip())


def counted(number: int, one: str, several: str = "") -> str:
    """A number and what there are so many of: "1 photo", "2,000 photos", "3 classes"."""
    return f"{number:,} {noun(number, one, several)}"


def noun(number: float, one: str, several: str = "") -> str:
    """What so many things are called, where the number stands elsewhere."""
    return one if number == 1 else several or one + ("es" if one.endswith("s") else "s")


class FlagParser(argparse.ArgumentParser):
    """A command line of many flags: underscores count as dashes, no flag is guessed, and a mistake is one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        words = [_with_dashes(word) for word in (sys.argv[1:] if args is None else args)]
        known, unknown = super().parse_known_args(words, namespace)
        flags = [word.partition("=")[0] for word in unknown if word.startswith("--") and len(word) > 2]
        if flags:
            meant = nearest_flag(flags[0], self._choices())
            self.error(f"there is no {flags[0]}" + (f"; did you mean {meant}?" if meant else ""))
        return known, unknown

    def _choices(self) -> dict[str, list[str]]:
        """Every flag with the words that it takes, if it takes only some."""
        flags = ((flag, action) for action in self._actions for flag in action.option_strings)
        return {flag: [str(each) for each in action.choices or ()] for flag, action in flags if flag.startswith("--")}

    def error(self, message: str) -> NoReturn:
        hint = "" if message.endswith("?") else "; --help lists all flags"
        self.exit(2, f"error: {one_line(message)}{hint}\n")


def nearest_flag(flag: str, flags: Mapping[str, Sequence[str]]) -> str | None:
    """What was probably meant: a value of a flag, a longer flag with these words or initials, or one spelled alike."""
    words = flag.strip("-").split("-")
    for known, choices in flags.items():
        if flag.strip("-") in choices:
            return f"{known} {flag.strip('-')}"
    spoken = {known: known.strip("-").split("-") for known in flags}
    by_words = [known for known, other in spoken.items() if set(words) <= set(other)]
    by_initials = [known for known, other in spoken.items() if "".join(w[0] for w in other if w) == "".join(words)]
    by_beginning = [known for known in flags if known.startswith(flag)]
    for found in (by_initials, by_words, by_beginning, get_close_matches(flag, flags, 1, 0.7)):
        if found:
            return min(found, key=lambda known: len(spoken[known]))
    return None


def _with_dashes(word: str) -> str:
    """A flag as it is spelled here; Hugging Face's scripts spell flags with underscores."""
    if not re.match(r"--\w", word):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value

"""How the commands speak: in plain lines, one for each thing."""

from __future__ import annotations

import logging
import unicodedata


def speak_plainly() -> None:
    """Have log messages appear as they are, but not every request of the Hub's client, whose addresses are signed."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for client in ("httpx", "httpx2"):
        logging.getLogger(client).setLevel(logging.WARNING)


def one_line(text: str) -> str:
    """A message without line breaks and other control characters, which the name of a file may hold."""
    unseen = {"Cc", "Cs", "Zl", "Zp"}
    return "".join(ascii(letter)[1:-1] if unicodedata.category(letter) in unseen else letter for letter in text.strip())

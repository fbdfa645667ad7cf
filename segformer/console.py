"""How the commands speak: in plain lines."""

from __future__ import annotations

import logging


def speak_plainly() -> None:
    """Have log messages appear as they are, but not every request of the Hub's client, whose addresses are signed."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for client in ("httpx", "httpx2"):
        logging.getLogger(client).setLevel(logging.WARNING)

"""Debian's Chromium through playwright's Python package: pages opened as a person would, with nothing let through.

CHROMIUM names the executable where it is not called chromium; without it, or without playwright, tests are skipped.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest


def find_chromium() -> str | None:
    """The executable of Chromium, or None."""
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def _what_is_missing() -> str:
    if importlib.util.find_spec("playwright") is None:
        return "no playwright; pip install playwright"
    return "" if find_chromium() else "no Chromium; apt-get install chromium, or name it in CHROMIUM"


needs_browser = [
    pytest.mark.browser,
    pytest.mark.skipif(bool(_what_is_missing()), reason=_what_is_missing()),
]


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window. Root has no sandbox to run it in."""
    from playwright.sync_api import sync_playwright

    flags = ["--disable-gpu", *(["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=flags)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """A page as it was opened: what it said on the console and what it asked for beside itself."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def visit(
    browser: Any, place: Path | str, width: int = 1440, height: int = 900, beside: tuple[str, ...] = (), **options: Any
) -> Iterator[Visit]:
    """Open a file or an address in a fresh window; every request but that for it and what is ``beside`` is refused."""
    address = place.as_uri() if isinstance(place, Path) else place
    allowed = {address, *(f"{address.rpartition('/')[0]}/{name}" for name in beside)}
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    visited = Visit(context.new_page())

    def answer(route: Any) -> None:
        if route.request.url in allowed:
            route.continue_()
        else:
            visited.requests.append(route.request.url)
            route.abort()

    context.route("**/*", answer)
    visited.page.on("console", lambda message: visited.complaints.append(message.text))
    visited.page.on("pageerror", lambda error: visited.complaints.append(str(error)))
    try:
        visited.page.goto(address)
        yield visited
    finally:
        context.close()


def wait_until(page: Any, condition: str, given: Any = None, seconds: float = 30) -> None:
    """Until a JavaScript condition holds. Looked at from outside: a page whose policy forbids ``eval`` cannot poll it,
    as playwright's ``wait_for_function`` has it do."""
    end = time.monotonic() + seconds
    while not page.evaluate(condition, given):
        assert time.monotonic() < end, f"{condition} does not hold after {seconds} seconds (given {given!r})"
        page.wait_for_timeout(20)

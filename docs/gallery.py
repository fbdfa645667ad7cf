"""Make the pictures of the README, by the project's own commands, from generated scenes that anyone may show.

    python docs/gallery.py                  trains the toy recipe first, a few minutes
    python docs/gallery.py --run runs/toy-1

Writes samples.png, page.png and report.png beside this file. The last two are seen through Chromium, which
playwright drives (pip install playwright, apt-get install chromium).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))
from data.toy.scenes import toy_rows  # noqa: E402

PHOTOS = 12
WINDOW = {"width": 1280, "height": 860}


def write_scenes(folder: Path) -> None:
    """The first scenes of the validation split as files: images/ and annotations/."""
    for column in ("images", "annotations"):
        (folder / column).mkdir(parents=True)
    for _, row in zip(range(PHOTOS), toy_rows("validation"), strict=False):
        for column, cell in (("images", row["image"]), ("annotations", row["annotation"])):
            (folder / column / cell["path"]).write_bytes(cell["bytes"])


def run(*words: str | Path) -> None:
    """One of the project's commands, as a user gives it."""
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True)


def photograph(page: Path, picture: Path) -> None:
    """What a person sees who opens a page."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"), args=["--no-sandbox"]
        )
        tab = browser.new_page(viewport=WINDOW, color_scheme="light")
        tab.goto(page.resolve().as_uri())
        tab.wait_for_timeout(500)
        tab.screenshot(path=picture)
        browser.close()


def main() -> None:
    """Train if need be, segment the scenes, and keep the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a finished run of the toy recipe")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trained = options.run or folder / "toy"
        if options.run is None:
            run("train.py", "--output-dir", trained)
        write_scenes(folder / "scenes")
        page = folder / "page.html"
        photos, annotations = folder / "scenes/images", folder / "scenes/annotations"
        looks = ["--checkpoint", trained.resolve(), "--html", page, "--annotations", annotations]
        run("infer.py", photos, "--output-dir", folder / "predictions", *looks, "--scores")
        shutil.copy(trained / "samples.png", DOCS / "samples.png")
        photograph(page, DOCS / "page.png")
        photograph(trained / "report.html", DOCS / "report.png")


if __name__ == "__main__":
    main()

"""What is handed out: the wheel and the archive of the sources, and the lower bounds of what they need."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHIPPED = {path.relative_to(ROOT).as_posix() for path in (ROOT / "segformer").rglob("*") if path.is_file()}
SHIPPED = {path for path in SHIPPED if "__pycache__" not in path}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both archives, made from a copy of the files that git knows."""
    pytest.importorskip("build", reason="no build; pip install -e '.[test]'")
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(made), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    return made


def test_the_wheel_holds_the_package_its_pages_and_its_licence_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    metadata = {name for name in names if ".dist-info/" in name}
    assert names - metadata == SHIPPED
    assert any(name.endswith("licenses/LICENSE") for name in metadata)


def test_the_archive_of_the_sources_holds_what_the_wheel_is_made_of(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert names >= SHIPPED | {"pyproject.toml", "README.md", "LICENSE"}
    assert not any(re.search(r"(^|/)(runs|shared|__pycache__|\.git)(/|$)", name) for name in names)


def test_the_wheel_makes_a_page_far_from_the_sources(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import segformer, segformer.pages.page\n"
        "from segformer.pages.page import asset\n"
        "assert segformer.__file__.startswith(sys.argv[1]), segformer.__file__\n"
        "print(all(asset(name) for name in ('page.css', 'page.js', 'report.html', 'photos.html')))"
    )
    zipfile.ZipFile(wheel).extractall(tmp_path)
    said = subprocess.run(
        [sys.executable, "-I", "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert said.stdout.strip() == "True"

"""What is handed out: the wheel and the archive of the sources, and the lower bounds of what they need."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from segformer import ImageProcessor, Segformer, SegformerConfig

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


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel in it, and with what it needs by way of the one that tests it; no clone near."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (python,) = (path for path in folder.glob("*/python*") if path.stem == "python")
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([str(python), "-c", asked], capture_output=True, text=True, check=True).stdout.strip())
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-index", "--no-deps", str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    (site / "needs.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    return python.parent


def segment(installed: Path, command: str, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """A command of the installed package on a photo and a small model, both in a folder of nothing else."""
    torch.manual_seed(0)
    config = SegformerConfig(hidden_sizes=(8, 16, 24, 32), num_attention_heads=(1, 2, 3, 4), num_labels=3)
    Segformer(config).save_pretrained(folder / "model")
    ImageProcessor(size=(32, 32)).save_pretrained(folder / "model")
    (folder / "photos").mkdir()
    Image.new("RGB", (40, 30), "red").save(folder / "photos/a.png")
    words = [str(installed / command.split()[0]), *command.split()[1:], "photos", "--checkpoint", "model", *flags]
    return subprocess.run(words, capture_output=True, text=True, cwd=folder, timeout=120, check=False)


@pytest.mark.parametrize("command", ["segformer-infer", "python -m segformer"])
def test_the_installed_package_segments_photos_without_a_clone(command: str, installed: Path, tmp_path: Path) -> None:
    done = segment(installed, command, tmp_path, "--html", "page.html")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "predictions").iterdir()) == [
        "a_labels.png",
        "a_overlay.png",
        "segments.json",
    ]
    assert (tmp_path / "page.html").is_file()


def test_the_installed_package_says_in_one_line_that_truths_need_a_clone(installed: Path, tmp_path: Path) -> None:
    done = segment(installed, "segformer-infer", tmp_path, "--annotations", "photos")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --annotations needs a clone: ")
    assert not (tmp_path / "predictions").exists()


def test_the_module_calls_itself_as_it_is_called(installed: Path, tmp_path: Path) -> None:
    done = segment(installed, "python -m segformer", tmp_path, "--opacity", "2")
    assert done.stderr.startswith("usage: python -m segformer ")


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

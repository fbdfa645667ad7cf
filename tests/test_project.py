"""The project as its readers meet it: the README's commands, paths and table, and who imports whom."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import infer
import train
from benchmarks import tables

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
KOREAN = (ROOT / "README.ko.md").read_text(encoding="utf-8")
in_both = pytest.mark.parametrize("readme", [README, KOREAN], ids=["English", "Korean"])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _commands(text: str) -> list[list[str]]:
    blocks = re.findall(r"```\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    return [shlex.split(command) for line in lines for command in line.split("&&")]


def test_the_readme_has_the_two_commands() -> None:
    assert "pip install -e . && python train.py\n" in README
    assert "pip install -e '.[test]' && pytest\n" in README


@pytest.mark.parametrize("words", [c for c in _commands(README) if c[:2] == ["python", "train.py"]], ids=" ".join)
def test_train_understands_the_commands_of_the_readme(words: list[str]) -> None:
    train.parse_arguments(words[2:])


@pytest.mark.parametrize("words", [c for c in _commands(README) if c[:1] == ["torchrun"]], ids=" ".join)
def test_train_understands_what_the_readme_gives_to_torchrun(words: list[str]) -> None:
    train.parse_arguments(words[words.index("train.py") + 1 :])


@pytest.mark.parametrize("words", [c for c in _commands(README) if c[:2] == ["python", "infer.py"]], ids=" ".join)
def test_infer_understands_the_commands_of_the_readme(words: list[str]) -> None:
    infer.parse_arguments(words[2:])


def test_the_korean_readme_has_the_commands_the_code_and_the_tables_of_the_english() -> None:
    blocks, korean = (re.findall(r"```.*?```", text, re.DOTALL) for text in (README, KOREAN))
    assert len(blocks) > 5
    assert korean == blocks
    sizes = [
        [len(re.findall(r"^\| ", part, re.MULTILINE)) for part in re.split(r"^#+ ", text, flags=re.MULTILINE)]
        for text in (README, KOREAN)
    ]
    assert sizes[0] == sizes[1]
    assert sum(sizes[0]) > 20


def test_the_korean_readme_speaks_of_the_same_names() -> None:
    names, korean = (set(re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)) for text in (README, KOREAN))
    assert korean == names


@in_both
def test_paths_in_the_readme_exist(readme: str) -> None:
    named = set(re.findall(r"`((?:segformer|data|tests|benchmarks|docs)/[\w./-]+)`", readme))
    named |= set(re.findall(r"\]\(((?!http)[^)]+)\)", readme))
    assert named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@in_both
def test_flags_in_the_readme_exist(readme: str) -> None:
    known = {"--" + name.replace("_", "-") for name in train.TrainConfig.__dataclass_fields__}
    known |= {"--opacity", "--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--no-reduce-labels"}
    known |= set(re.findall(r"add\(\"(--[a-z-]+)", (ROOT / "infer.py").read_text(encoding="utf-8")))
    known |= set(
        re.findall(r"add_argument\(\s*\"(--[a-z-]+)", (ROOT / "benchmarks/throughput.py").read_text(encoding="utf-8"))
    )
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", readme)) <= known


def test_reading_order_names_every_module_of_the_package() -> None:
    modules = {f"segformer/{path.name}" for path in (ROOT / "segformer").glob("*.py")} - {"segformer/__init__.py"}
    assert [module for module in sorted(modules) if f"`{module}`" not in README] == []


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tables_of_measurements_say_what_the_result_files_say(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "<!-- results/" in text
    assert tables.render(text) == text


def test_the_picture_of_the_architecture_shows_the_model_as_it_is() -> None:
    architecture = _script("docs/architecture.py")
    drawn = architecture.draw(architecture.measure())
    assert (ROOT / "docs/architecture.svg").read_text(encoding="utf-8") == drawn, "run python docs/architecture.py"


def _script(path: str) -> ModuleType:
    """A file outside the packages as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where a NamedTuple looks for its names
    spec.loader.exec_module(module)
    return module


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize(("package", "stranger"), [("segformer", "data"), ("data", "segformer")])
def test_model_and_data_do_not_import_each_other(package: str, stranger: str) -> None:
    assert [path.name for path in (ROOT / package).glob("*.py") if stranger in _imports(path)] == []


def test_shipped_code_imports_only_the_declared_dependencies() -> None:
    declared = {re.split(r"[<>=]", name)[0].lower() for name in PROJECT["project"]["dependencies"]}
    assert declared == {"torch", "torchvision", "safetensors", "huggingface_hub", "pillow", "numpy", "pyarrow", "tqdm"}
    imported = {
        name for folder in ("segformer", "data") for path in (ROOT / folder).glob("*.py") for name in _imports(path)
    }
    imported |= _imports(ROOT / "train.py") | _imports(ROOT / "infer.py")
    standard = set(__import__("sys").stdlib_module_names)
    assert {name.lower() for name in imported - standard} - {"pil", "segformer", "data"} <= declared


def test_dependencies_have_lower_bounds_only() -> None:
    assert all(re.fullmatch(r"[\w-]+>=[\d.]+", name) for name in PROJECT["project"]["dependencies"])

"""The project as its readers meet it: the commands, paths, names and tables of its pages, and who imports whom."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import json
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
from data import folders, look
from segformer import export

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
READING = (ROOT / "docs/reading.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "README.ko.md", *sorted((ROOT / "docs").glob("*.md"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FIGURE = ("config", "pointwise", "encoder", "decoder", "model")  # the five files, in the order to read them


def _name(page: Path | str) -> str:
    return str(page.relative_to(ROOT)) if isinstance(page, Path) else str(page)


def _is_korean(page: Path) -> bool:
    return page.stem.endswith(".ko")


def _twin(page: Path) -> Path:
    """The same page in the other language."""
    return page.with_name(page.stem.removesuffix(".ko") + ("" if _is_korean(page) else ".ko") + page.suffix)


on_each_page = pytest.mark.parametrize("page", PAGES, ids=_name)
in_each_pair = pytest.mark.parametrize("page", [page for page in PAGES if not _is_korean(page)], ids=_name)


def _blocks(text: str) -> list[str]:
    return re.findall(r"```.*?```", text, re.DOTALL)


def _names(text: str) -> set[str]:
    """What stands in backticks within the prose."""
    return set(re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text))


def _commands() -> list[list[str]]:
    """The commands in the blocks of all pages, each once."""
    fenced = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    blocks = [fence for page in PAGES for fence in fenced.findall(page.read_text("utf-8"))]
    lines = dict.fromkeys(line for kind, block in blocks for line in block.splitlines() if line.strip() and not kind)
    return [shlex.split(command) for line in lines for command in line.split("&&")]


PARSERS = {
    "python train.py": train.parse_arguments,
    "python infer.py": infer.parse_arguments,
    "python -m data.folders": folders.parse_arguments,
    "python -m data.look": look.parse_arguments,
    "python -m segformer.export": export.parse_arguments,
}


@pytest.mark.parametrize("words", [words for words in _commands() if words[0] in ("python", "torchrun")], ids=" ".join)
def test_the_commands_of_the_pages_are_understood(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("runs/guide-1").symlink_to(ROOT / "tests/fixtures/earlier_run/run")
    Path("dataset").symlink_to(ROOT / "tests/fixtures/earlier_run/dataset")
    if words[0] == "torchrun":
        train.parse_arguments(words[words.index("train.py") + 1 :])
        return
    (program,) = (program for program in PARSERS if words[: program.count(" ") + 1] == program.split())
    PARSERS[program](words[program.count(" ") + 1 :])


def test_the_readme_has_the_two_commands() -> None:
    assert "pip install -e . && python train.py\n" in README
    assert "pip install -e '.[test]' && pytest -n 3\n" in README


@in_each_pair
def test_the_korean_page_has_the_code_and_the_tables_of_the_english(page: Path) -> None:
    english, korean = page.read_text(encoding="utf-8"), _twin(page).read_text(encoding="utf-8")
    assert _blocks(korean) == _blocks(english)
    sizes = [
        [len(re.findall(r"^\| ", part, re.MULTILINE)) for part in re.split(r"^#+ ", text, flags=re.MULTILINE)]
        for text in (english, korean)
    ]
    assert sizes[0] == sizes[1]


@in_each_pair
def test_the_korean_page_speaks_of_the_same_names(page: Path) -> None:
    assert _names(_twin(page).read_text(encoding="utf-8")) == _names(page.read_text(encoding="utf-8"))


@on_each_page
def test_links_and_pictures_of_the_page_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"\]\(((?!http)[^)]+)\)", text)) | set(re.findall(r"src=\"([^\"]+)\"", text))
    assert named
    assert [path for path in sorted(named) if not (page.parent / path).exists()] == []


@on_each_page
def test_a_page_leads_on_in_its_own_language(page: Path) -> None:
    links = re.findall(r"\]\(([^)]+\.(?:md|ipynb))\)", page.read_text(encoding="utf-8"))
    targets = {(page.parent / link).resolve() for link in links if not link.startswith("http")}
    assert _twin(page) in targets
    others = [target for target in targets - {_twin(page)} if _twin(target).exists()]
    assert [target.name for target in others if _is_korean(target) != _is_korean(page)] == []


@pytest.mark.parametrize("page", [*PAGES, *map(ROOT.joinpath, ("CONTRIBUTING.md", "SECURITY.md"))], ids=_name)
def test_paths_on_the_page_exist(page: Path) -> None:
    paths = {name for name in _names(page.read_text(encoding="utf-8")) if re.fullmatch(r"[\w.-]+/[\w./-]*\w/?", name)}
    ours = {path for path in paths if path.startswith(("segformer/", "data/", "tests/", "benchmarks/", "docs/"))}
    assert [path for path in sorted(ours) if not (ROOT / path).exists()] == []


@on_each_page
def test_dotted_names_on_the_page_exist(page: Path) -> None:
    for name in _names(page.read_text(encoding="utf-8")):
        if found := re.match(r"((?:segformer|data)(?:\.[A-Za-z_]\w*)+)", name):
            parts = found[1].split(".")
            assert functools.reduce(_inside, parts[1:], importlib.import_module(parts[0])), name


def _inside(owner: object, name: str) -> object:
    if isinstance(owner, ModuleType) and not hasattr(owner, name):
        return importlib.import_module(f"{owner.__name__}.{name}")
    return getattr(owner, name)


@on_each_page
def test_flags_on_the_page_exist(page: Path) -> None:
    known = {"--" + name.replace("_", "-") for name in train.TrainConfig.__dataclass_fields__}
    known |= {"--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--no-reduce-labels", "--config"}
    for command in ("segformer/command.py", "segformer/export.py"):
        known |= set(re.findall(r"add\(\"(--[a-z0-9-]+)", (ROOT / command).read_text(encoding="utf-8")))
    known |= set(
        re.findall(r"add_argument\(\s*\"(--[a-z-]+)", (ROOT / "benchmarks/throughput.py").read_text(encoding="utf-8"))
    )
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", page.read_text(encoding="utf-8"))) <= known


def test_the_readme_names_the_files_of_the_figure_in_order() -> None:
    rows = re.findall(r"^\| `segformer/(\w+)\.py` \|", README, re.MULTILINE)
    assert tuple(rows) == FIGURE


def test_the_readme_has_a_line_for_every_wing() -> None:
    wings = {path.parent.relative_to(ROOT) for name in ("segformer", "data") for path in (ROOT / name).rglob("*.py")}
    assert [wing for wing in sorted(wings) if f"| `{wing.as_posix()}/` |" not in README] == []


def test_every_module_has_a_line_in_the_reading_order() -> None:
    files = [path for name in ("segformer", "data") for path in (ROOT / name).rglob("*.py")]
    modules = {path.relative_to(ROOT).as_posix() for path in files if path.name != "__init__.py"} | {
        "train.py",
        "infer.py",
    }
    assert [module for module in sorted(modules) if f"`{module}`" not in READING] == []


def test_what_the_reading_order_says_to_look_for_is_there() -> None:
    places = re.findall(r"^\| [^|]+ \| `([\w./]+)` \| `(\w+)` \|$", READING, re.MULTILINE)
    assert places
    for file, name in places:
        assert re.search(rf"\b(def|class|function) {name}\b", (ROOT / file).read_text(encoding="utf-8")), (file, name)


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tables_of_measurements_say_what_the_result_files_say(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "<!-- results/" in text
    assert tables.render(text) == text


def test_the_picture_of_the_architecture_shows_the_model_as_it_is() -> None:
    architecture = _script("docs/architecture.py")
    drawn = architecture.draw(architecture.measure())
    assert (ROOT / "docs/architecture.svg").read_text(encoding="utf-8") == drawn, "run python docs/architecture.py"


def test_the_picture_of_the_curves_shows_what_was_measured() -> None:
    curves = _script("docs/curves.py")
    rows = json.loads(curves.RESULTS.read_text(encoding="utf-8"))["rows"]
    drawn = curves.draw(rows)
    assert drawn.count('<path class="curve') == len(rows) + len({row["run"] for row in rows})  # with the legend's
    assert (ROOT / "docs/curves.svg").read_text(encoding="utf-8") == drawn, "run python docs/curves.py"


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
    commands = {"look.py"}  # which join the two, as train.py and infer.py do
    modules = [path for path in (ROOT / package).rglob("*.py") if path.name not in commands]
    assert [path.name for path in modules if stranger in _imports(path)] == []


def test_shipped_code_imports_only_the_declared_dependencies() -> None:
    declared = {re.split(r"[<>=]", name)[0].lower() for name in PROJECT["project"]["dependencies"]}
    assert declared == {"torch", "torchvision", "safetensors", "huggingface_hub", "pillow", "numpy", "pyarrow", "tqdm"}
    imported = {
        name for folder in ("segformer", "data") for path in (ROOT / folder).glob("*.py") for name in _imports(path)
    }
    imported |= _imports(ROOT / "train.py") | _imports(ROOT / "infer.py")
    standard = set(__import__("sys").stdlib_module_names)
    comes_with_torch = {"triton"}  # on CUDA; what imports it is imported there alone
    of_the_clone = {"segformer", "data", "infer"}  # the last by segformer.export, which says so where there is no clone
    assert {name.lower() for name in imported - standard} - {"pil"} - of_the_clone - comes_with_torch <= declared


def test_dependencies_have_lower_bounds_only() -> None:
    assert all(re.fullmatch(r"[\w-]+>=[\d.]+", name) for name in PROJECT["project"]["dependencies"])

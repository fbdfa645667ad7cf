"""Who may import whom, and the names that are there to be used from outside."""

from __future__ import annotations

import ast
import importlib
import inspect
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FIGURE = "segformer"  # its top: the paper's figure and what one does with a model

# A new arrow between rooms needs a line here, and a reason.
MAY_IMPORT = {
    FIGURE: {FIGURE, "segformer.fullres"},
    "segformer.fullres": {"segformer.fullres"},
    "segformer.weights": {FIGURE, "segformer.fullres", "segformer.weights"},
    "segformer.training": {FIGURE, "segformer.fullres", "segformer.training"},
    "segformer.pages": {FIGURE, "segformer.pages", "segformer.training"},  # pages read what training wrote
    "data": {"data", "data.sources", "data.augmentation"},
    "data.sources": {"data", "data.sources", "data.toy"},
    "data.augmentation": {"data", "data.augmentation"},
    "data.toy": {"data.toy"},
}
# The doors in the figure: from_pretrained, save_pretrained and push_to_hub; and the commands, which make pages. What a
# checkpoint knows of its classes may lie on the Hub.
DOORS = {
    "segformer.model": {"segformer.weights.pretrained", "segformer.weights.publish"},
    "segformer.processor": {"segformer.weights.hub"},
    "segformer.segmenter": {"segformer.weights.graphs"},
    "segformer.training.recorded": {"segformer.weights.hub"},
    "segformer.export": {
        "segformer.pages.model_page",
        "segformer.weights.export",
        "segformer.weights.graphs",
        "segformer.weights.int8",
    },
    "segformer.command": {"segformer.pages.photo_page", "segformer.weights.publish"},
}
# Commands, which join the two packages as train.py and infer.py do.
COMMANDS = {"data.look"}
PUBLIC = {
    "segformer": [
        "VARIANTS",
        "ConfusionMatrix",
        "ImageProcessor",
        "Segformer",
        "SegformerConfig",
        "Segmenter",
        "Views",
        "fullres",
    ],
    "data": ["SceneParse150", "train_test_split"],
    "train": ["TrainConfig", "configure", "evaluate", "parse_arguments", "train", "train_step"],
}


def modules() -> dict[str, Path]:
    """Every module of the two packages by its name; a package stands for its ``__init__``."""
    files = [path for package in ("segformer", "data") for path in (ROOT / package).rglob("*.py")]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}
    return dict(sorted(names.items()))


MODULES = modules()


def imports(path: Path) -> set[str]:
    """The modules of the two packages that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & set(MODULES) or {node.module}
    return found & set(MODULES)


def room(module: str) -> str:
    """The package that a module lies in."""
    return module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]


def test_no_two_test_files_have_one_name() -> None:
    names = sorted(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(set(names)) == len(names), "pytest collects only one of them"


def test_nothing_imports_a_command() -> None:
    assert not [module for module, path in MODULES.items() if imports(path) & COMMANDS]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_room_may(module: str) -> None:
    allowed = set(MAY_IMPORT) if module in COMMANDS else MAY_IMPORT[room(module)]
    strangers = {other for other in imports(MODULES[module]) if room(other) not in allowed}
    assert strangers == DOORS.get(module, set())


def test_no_module_imports_itself_by_way_of_others() -> None:
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    arrows = {name: imports(path) - packages for name, path in MODULES.items() if name not in packages}
    assert list(TopologicalSorter(arrows).static_order())


def test_every_room_says_in_one_sentence_what_lives_there() -> None:
    for name, path in MODULES.items():
        if path.name == "__init__.py":
            told = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
            assert told, name
            assert "\n" not in told, name


@pytest.mark.parametrize("module", PUBLIC)
def test_the_public_names_are_these(module: str) -> None:
    assert sorted(importlib.import_module(module).__all__) == sorted(PUBLIC[module])


def test_the_loop_fits_on_a_few_screens() -> None:
    import train

    lines = inspect.getsource(train).splitlines()
    assert len(lines) <= 650
    assert len(inspect.getsource(train.Run).splitlines()) <= 200

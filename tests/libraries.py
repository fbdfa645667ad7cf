"""The libraries that results are compared with. A test that needs one skips where it is not there, and says so."""

from __future__ import annotations

from typing import Any

import pytest


class Library:
    """A module that is imported when something of it is asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("_", "pytest")):  # pytest itself asks, of everything that a test file holds
            raise AttributeError(name)
        package = self._name.partition(".")[0]
        return getattr(pytest.importorskip(self._name, reason=f"no {package}; pip install -e '.[test]'"), name)


datasets = Library("datasets")
transformers = Library("transformers")
pil_processor = Library("transformers.models.segformer.image_processing_pil_segformer")

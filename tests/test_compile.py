"""The model as one graph: compiled without breaks, exported with free batch and sizes, saved under clean names."""

from __future__ import annotations

import pytest
import torch
from torch.export import Dim

from segformer import Segformer


@pytest.mark.parametrize("training", [True, False])
def test_model_compiles_without_graph_breaks(tiny_model: Segformer, training: bool) -> None:
    explanation = torch._dynamo.explain(tiny_model.train(training))(torch.randn(2, 3, 64, 96))
    assert explanation.graph_break_count == 0
    assert explanation.graph_count == 1


def test_compiled_model_gives_the_same_logits_and_clean_names(tiny_model: Segformer) -> None:
    names, images = list(tiny_model.state_dict()), torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = tiny_model(images)
        tiny_model.compile(backend="aot_eager")
        torch.testing.assert_close(tiny_model(images), expected, rtol=1e-5, atol=1e-5)
    assert list(tiny_model.state_dict()) == names


def test_model_exports_with_dynamic_batch_height_and_width(tiny_model: Segformer) -> None:
    shapes = {0: Dim("batch", max=64), 2: Dim("height", min=64, max=4096), 3: Dim("width", min=64, max=4096)}
    exported = torch.export.export(tiny_model, (torch.randn(2, 3, 128, 160),), dynamic_shapes=(shapes,)).module()
    for size in ((1, 3, 97, 65), (3, 3, 64, 64), (2, 3, 211, 513)):
        images = torch.randn(size)
        torch.testing.assert_close(exported(images), tiny_model(images), rtol=1e-5, atol=1e-5)

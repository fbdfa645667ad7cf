"""The hand-written kernels: not in use, compiled for cards, and in Triton's interpreter equal to the plain values."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from segformer.fullres import cells

with_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton, which comes with CUDA")


@with_triton
@pytest.mark.parametrize(
    "some",
    [
        pytest.param("one_class or all_ignored or no_number or without_a_gradient", id="a few"),
        pytest.param("", id="all", marks=pytest.mark.slow),
    ],
)
def test_in_triton_s_interpreter_the_kernels_give_the_plain_values(some: str) -> None:
    tests = Path(__file__).with_name("cells_interpreted.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests), "-k", some]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout[-3000:]
    assert " passed" in answer.stdout


def test_the_kernels_are_not_in_use_yet() -> None:
    assert not cells.IN_USE
    assert not cells.can_run(torch.randn(2, 5, 2, 2))


@with_triton
def test_a_cpu_and_an_old_gpu_go_without_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "IN_USE", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1) if device.index else (9, 0))
    cells._is_supported.cache_clear()
    try:
        supported = [cells._is_supported(torch.device(name)) for name in ("cpu", "cuda:0", "cuda:1")]
    finally:
        cells._is_supported.cache_clear()
    assert supported == [False, True, False]


@pytest.mark.parametrize(("size_in", "size_out"), [(4, 16), (1, 4), (3, 13), (7, 2), (5, 5), (128, 512)])
def test_every_pixel_is_in_the_cell_of_the_logit_before_it(size_in: int, size_out: int) -> None:
    first, place = cells._cells(size_in, size_out, torch.device("cpu"))
    assert (first[0], first[-1]) == (0, size_out)
    one_hot = torch.eye(size_in)[None, None]
    weights = F.interpolate(one_hot, (size_out, size_in), mode="bilinear", align_corners=False)[0, 0]  # (out, in)
    for i in range(size_in):
        for pixel in range(int(first[i]), int(first[i + 1])):
            expected = torch.zeros(size_in)
            expected[i] += 1 - place[pixel]
            expected[min(i + 1, size_in - 1)] += place[pixel]
            torch.testing.assert_close(weights[pixel], expected, rtol=0, atol=1e-6)


@with_triton
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_for_cards(capability: int) -> None:
    import triton
    from triton.backends.compiler import GPUTarget

    from segformer.fullres import kernels

    pointers = {"small": "*bf16", "row_first": "*i32", "row_place": "*fp32"}
    pointers |= {"column_first": "*i32", "column_place": "*fp32", "labels": "*i64", "losses": "*fp32"}
    pointers |= {"corners": "*fp32", "gradient": "*fp32", "prediction": "*i64"}
    constants = {"IGNORED": 255, "GRADIENT": True, "CLASSES": 256, "PIXELS": 4, "BLOCK": 1024}
    for kernel in (kernels.cell_loss, kernels.add_corners, kernels.cell_argmax):
        names = kernel.arg_names
        types = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in names}
        fixed = {(names.index(name),): value for name, value in constants.items() if name in names}
        source = triton.compiler.ASTSource(kernel, signature=types, constexprs=fixed)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 1})
        assert "atom" not in compiled.asm["ptx"]
        assert len(compiled.asm["cubin"]) > 0

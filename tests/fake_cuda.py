"""A CUDA device that keeps books and computes nothing, so that what only a GPU would show can be tested without one.

Tensors on the CPU are what they are. Tensors on ``cuda`` have a shape and a dtype and no values (torch's
``FakeTensorMode``, which needs no driver), and every operation on them is noted: which kernels would start, what they
would write, and where the host would wait. An operation whose operands lie on two devices raises.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from segformer.fullres import bands, losses

aten = torch.ops.aten
_COPIES = (aten._to_copy.default, aten.copy_.default)
_NUMBERED_BY_VALUES = ("nonzero", "masked_select", "_unique2", "unique_dim", "bincount", "equal", "repeat_interleave")


class Launch(NamedTuple):
    """One operation that writes memory: its name in aten, and the largest tensor that it writes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """How many values it writes."""
        return torch.Size(self.shape).numel()


class FakeCard(TorchDispatchMode):
    """Notes ``launches`` and ``waits`` of everything that touches ``cuda`` while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[Launch] = []
        self.waits: list[str] = []
        self._pinned: list[Tensor] = []

    def forget(self) -> None:
        """Begin new books."""
        self.launches.clear()
        self.waits.clear()

    def kernels(self, *names: str) -> list[Launch]:
        """The launches of these names."""
        return [launch for launch in self.launches if launch.name in names]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        if func is aten._pin_memory.default:
            return self._pin(args[0])
        if func is aten.is_pinned.default:
            return self._is_pinned(args[0])
        if not any(_is_on_cuda(leaf) for leaf in leaves):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func in _COPIES:
            return self._copy(func, args, kwargs)
        strays = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.device.type == "cpu" and leaf.ndim]
        assert not strays, f"{func} has operands on cuda, and on the CPU one of {list(strays[0].shape)}"
        return self._compute(func, args, kwargs)

    def _compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name == "_local_scalar_dense":
            self.waits.append(name)
            return {torch.bool: False}.get(args[0].dtype, 0.0 if args[0].is_floating_point() else 0)
        by_mask = name in ("index", "index_put_", "index_put") and any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if by_mask or name in _NUMBERED_BY_VALUES:
            self.waits.append(name)
        result = func(*args, **kwargs)
        if _writes(func):
            written = max((leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)), key=Tensor.numel)
            self.launches.append(Launch(name, written.dtype, tuple(written.shape)))
        return result

    def _copy(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Only a copy from pinned and dense memory that nobody waits for lets the host go on."""
        source = args[-1] if func is aten._to_copy.default else args[1]
        is_from_cuda = _is_on_cuda(source)
        is_to_cuda = _is_on_cuda(kwargs.get("device", source) if func is aten._to_copy.default else args[0])
        if is_from_cuda and is_to_cuda:
            return self._compute(func, args, kwargs)
        non_blocking = kwargs.get("non_blocking", len(args) > 2 and args[2])
        name = f"copy of {list(source.shape)} from {source.device.type}"
        if is_from_cuda:
            self.waits.append(name)
            with unset_fake_temporarily():
                values = torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype)
                return values if func is aten._to_copy.default else args[0].copy_(values)
        if not (non_blocking and self._is_pinned(source) and source.is_contiguous()):
            self.waits.append(name)
        self.launches.append(Launch("copy from the host", source.dtype, tuple(source.shape)))
        return func(*args, **kwargs)

    def _pin(self, values: Tensor) -> Tensor:
        with unset_fake_temporarily():  # which keeps the strides, gaps and all
            self._pinned.append(torch.empty_strided(values.shape, values.stride(), dtype=values.dtype).copy_(values))
        return self._pinned[-1]

    def _is_pinned(self, values: Tensor) -> bool:
        places = {pinned.untyped_storage().data_ptr() for pinned in self._pinned}
        return values.untyped_storage().data_ptr() in places


def _is_on_cuda(value: object) -> bool:
    device = value.device if isinstance(value, Tensor) else value
    return isinstance(device, torch.device) and device.type == "cuda"


def _writes(func: Any) -> bool:
    """Whether an operation starts a kernel: views, and memory that is only taken, do not."""
    schema = func._schema
    is_view = any(each.alias_info is not None and not each.alias_info.is_write for each in schema.returns)
    is_bare = "empty" in schema.name or schema.name == "aten::_unsafe_view"
    return schema.name.startswith("aten::") and bool(schema.returns) and not is_view and not is_bare


@contextmanager
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCard]:
    """Have ``cuda`` be a fake card, which autocast takes for a real one, until the block ends."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr(torch.Tensor, "backward", _backward)
    monkeypatch.setattr(_foreach_utils, "_foreach_supported_types", [torch.nn.Parameter, Tensor, FakeTensor])
    caches = bands._plan_once, losses._send_weights  # of tensors, which are fake here
    try:
        for cache in caches:
            cache.cache_clear()
        with FakeTensorMode(allow_non_fake_inputs=True), FakeCard() as card:
            yield card
    finally:
        for cache in caches:
            cache.cache_clear()


def _backward(root: Tensor) -> None:
    """What autograd's engine does, which cannot start on ``cuda`` without a driver: call every node of the graph."""
    assert root.grad_fn is not None
    gradients: dict[Node, dict[int, Tensor]] = {root.grad_fn: {0: torch.ones_like(root)}}
    with torch.no_grad(), torch.autocast("cuda", enabled=False):
        for node in _from_the_root(root.grad_fn):
            given = gradients.pop(node, {})
            if node.name() == "torch::autograd::AccumulateGrad":
                weight, gradient = node.variable, given[0]  # type: ignore[attr-defined]
                weight.grad = gradient if weight.grad is None else weight.grad + gradient
                continue
            inputs = [given.get(number) for number in range(len(node._input_metadata))]  # type: ignore[attr-defined]
            outputs = (node.apply if isinstance(node, BackwardCFunction) else node)(*inputs)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            for (following, number), gradient in zip(node.next_functions, outputs, strict=False):
                if following is None or gradient is None:
                    continue
                meant = following._input_metadata[number]  # type: ignore[attr-defined]
                if gradient.shape != meant.shape:
                    gradient = gradient.sum_to_size(meant.shape)
                if gradient.dtype != meant.dtype:
                    gradient = gradient.to(meant.dtype)
                slot = gradients.setdefault(following, {})
                slot[number] = slot[number] + gradient if number in slot else gradient


def _from_the_root(root: Node) -> list[Node]:
    """Every node of a graph, each before those that it hands gradients to."""
    finished: list[Node] = []
    seen, path = {root}, [(root, iter(root.next_functions))]
    while path:
        node, rest = path[-1]
        following = next((each for each, _ in rest if each is not None and each not in seen), None)
        if following is None:
            finished.append(node)
            path.pop()
        else:
            seen.add(following)
            path.append((following, iter(following.next_functions)))
    return finished[::-1]

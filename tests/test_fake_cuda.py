"""What a GPU would do, told by a card that computes nothing: no waits, no operand elsewhere, dtypes, kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fake_cuda import FakeCard, fake_cuda
from torch import Tensor

from data.augmentation.jitter import ColorJitter
from data.augmentation.on_device import AugmentOnDevice
from segformer import VARIANTS, Segformer, SegformerConfig, fullres
from segformer.decoder import AllMLPDecoder
from segformer.detail import DetailedConfusionMatrix
from segformer.fullres import Loss
from segformer.training.precision import autocast
from segformer.training.ranks import compute_deterministically, own_device
from train import TrainConfig, build_optimizer, score_views, train_step

pytestmark = pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this torch was built without CUDA")

CUDA = torch.device("cuda")
DTYPES = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCard]:
    """The card, which is ``cuda`` until the test ends."""
    with fake_cuda(monkeypatch) as card:
        yield card


def model_of(config: SegformerConfig) -> Segformer:
    with CUDA:
        return Segformer(config)


def batch_of(count: int, height: int, width: int) -> dict[str, Tensor]:
    labels = torch.empty(count, height, width, dtype=torch.int64, device=CUDA)
    return {"images": torch.empty(count, 3, height, width, device=CUDA), "labels": labels}


def take_step(card: FakeCard, model: Segformer, batch: dict[str, Tensor], **settings: Any) -> None:
    """A step after the first, which plans the bands of the loss and makes the optimiser's state."""
    config = TrainConfig(**settings)
    optimizer = build_optimizer(model.train(), config)
    scaler = torch.amp.GradScaler("cuda", enabled=config.amp == "fp16")
    for _ in range(2):
        card.forget()
        train_step(model, optimizer, scaler, batch, config)


# ----------------------------------------------------------------------------------------------- what the card notices

WAITING: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.any()),
    "int": lambda x: int(x.max()),
    "to the host": lambda x: x.cpu(),
    "from the host": lambda x: torch.ones(3).to(CUDA),
    "from the host, without waiting for its end": lambda x: torch.ones(3).to(CUDA, non_blocking=True),
    "of a view, which is made dense in other memory": lambda x: (
        torch.ones(3, 2)[:, 0].pin_memory().to(CUDA, non_blocking=True)
    ),
    "a new tensor of numbers": lambda x: torch.tensor([1.0, 2.0], device=CUDA),
    "assignment of a tensor on the CPU": lambda x: x.copy_(torch.ones(4)),
}


@pytest.mark.parametrize("work", WAITING.values(), ids=WAITING)
def test_a_wait_is_noticed(card: FakeCard, work: Callable[[Tensor], object]) -> None:
    work(torch.ones(4, device=CUDA))
    assert len(card.waits) == 1


@pytest.mark.parametrize("work", [torch.nonzero, lambda x: x[x > 0], lambda x: x.long().bincount()])
def test_an_output_whose_size_the_host_must_know_is_noticed(card: FakeCard, work: Callable[[Tensor], object]) -> None:
    values = torch.ones(4, device=CUDA)
    with pytest.raises(Exception, match=r"nonzero|bincount"):
        work(values)
    assert len(card.waits) == 1


def test_pinned_memory_leaves_without_a_wait(card: FakeCard) -> None:
    torch.ones(3).pin_memory().to(CUDA, non_blocking=True)
    assert card.waits == []


def test_an_operand_on_the_cpu_is_noticed(card: FakeCard) -> None:
    with pytest.raises(AssertionError, match="on the CPU one of"):
        torch.ones(3, device=CUDA) + torch.ones(3)


def test_views_start_no_kernel_and_what_writes_starts_one(card: FakeCard) -> None:
    values = torch.empty(4, 6, device=CUDA)
    values.view(2, 12)[:, ::2].t()
    assert card.launches == []
    values.mul(2).add_(1)
    assert [launch.name for launch in card.launches] == ["mul", "add_"]


def test_every_weight_gets_the_gradient_that_autograd_gives_it(card: FakeCard, tiny_config: SegformerConfig) -> None:
    model = model_of(tiny_config)
    take_step(card, model, batch_of(2, 64, 96), amp="bf16")
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert (weight.grad.shape, weight.grad.dtype) == (weight.shape, torch.float32), name


# ------------------------------------------------------------------------------------------------------------ the step


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_the_host_never_waits_inside_a_step_of_two_parts(
    card: FakeCard, amp: str, tiny_config: SegformerConfig
) -> None:
    take_step(card, model_of(tiny_config), batch_of(4, 64, 96), amp=amp, per_device_train_batch_size=2)
    assert card.waits == []


# Of B0 with 150 classes at 512 x 512. Attention counts more here than on a card, where each is one kernel, and the
# optimiser less.
@pytest.mark.parametrize(
    ("amp", "images", "most"),
    [("off", 2, 732), ("bf16", 2, 1170), ("fp16", 2, 1174), ("bf16", 16, 1482)],
)
def test_a_step_starts_no_more_kernels_than_it_did_and_never_waits(
    card: FakeCard, amp: str, images: int, most: int
) -> None:
    model = model_of(VARIANTS["b0"](num_labels=150))
    take_step(card, model, batch_of(images, 512, 512), amp=amp, per_device_train_batch_size=images)
    assert len(card.launches) <= most
    assert card.waits == []


@pytest.mark.parametrize("amp", DTYPES)
def test_the_maps_of_the_decoder_keep_the_precision_that_is_asked_for(
    card: FakeCard, amp: str, tiny_config: SegformerConfig
) -> None:
    model, size = model_of(tiny_config).train(), (2, tiny_config.decoder_hidden_size, 16, 24)
    with autocast(amp, CUDA):
        features = model.encoder(batch_of(2, 64, 96)["images"])
        card.forget()
        logits = model.decoder(features)
    logits.sum().backward()
    maps = [launch for launch in card.launches if launch.shape == size]
    assert {"upsample_bilinear2d", "add_", "relu_", "native_dropout"} <= {launch.name for launch in maps}
    assert {launch.dtype for launch in [*maps, *card.kernels("upsample_bilinear2d_backward")]} == {DTYPES[amp]}
    assert logits.dtype == DTYPES[amp]


DROP_PATH = {"rand"}
ATTENTION_WRITTEN_OUT = {"mul", "bmm", "_safe_softmax", "clone"}  # as torch takes it where it finds no driver


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_of_the_encoder_only_norms_and_the_residual_stream_are_in_float32(
    card: FakeCard, amp: str, tiny_config: SegformerConfig
) -> None:
    model = model_of(tiny_config).train()
    card.forget()
    with autocast(amp, CUDA):
        model.encoder(batch_of(2, 64, 96)["images"])
    in_float32 = {launch.name for launch in card.launches if launch.dtype == torch.float32}
    assert in_float32 <= {"native_layer_norm", "add", "_to_copy", *DROP_PATH, *ATTENTION_WRITTEN_OUT}


# -------------------------------------------------------------------------------------------------- loss and prediction

LOSSES = {
    "cross-entropy": Loss(),
    "focal": Loss("focal"),
    "ohem": Loss("ohem"),
    "weights and smoothing": Loss(weights=(1.0, 2.0, 0.5, 0.0, 1.0), smoothing=0.1),
    "dice": Loss(dice_weight=0.5),
}
SIZES = [((8, 12), (32, 48)), ((9, 7), (33, 30))]


@pytest.mark.parametrize(("small", "size"), SIZES)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("classes", [1, 5])
def test_no_loss_waits(card: FakeCard, loss: Loss, classes: int, small: tuple[int, int], size: tuple[int, int]) -> None:
    if classes == 1 and loss.weights is not None:
        loss = Loss(weights=(1.0, 2.0))
    labels = batch_of(2, *size)["labels"]
    for _ in range(2):  # the first plans the bands
        card.forget()
        logits = torch.empty(2, classes, *small, device=CUDA, requires_grad=True)
        fullres.mean_loss(logits, labels, loss).backward()
        fullres.total_weight(labels, loss)
    assert card.waits == []


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_the_loss_is_worked_out_in_float32_and_its_gradient_has_the_dtype_of_the_logits(
    card: FakeCard, dtype: torch.dtype, reduction: str
) -> None:
    logits = torch.empty(2, 5, 8, 12, device=CUDA, dtype=dtype, requires_grad=True)
    with torch.autocast("cuda", torch.bfloat16):
        loss = fullres.cross_entropy(logits, batch_of(2, 32, 48)["labels"], reduction=reduction)
    loss.backward()
    assert loss.dtype == torch.float32
    assert {launch.dtype for launch in card.kernels("log_softmax", "_log_softmax", "bmm")} == {torch.float32}
    assert logits.grad is not None
    assert logits.grad.dtype == dtype


PREDICTIONS: dict[str, Callable[[Tensor, tuple[int, int]], object]] = {
    "argmax": fullres.argmax,
    "argmax_of_mean": lambda logits, size: fullres.argmax_of_mean([logits, logits], size),
    "argmax_with_probability": lambda logits, size: fullres.argmax_with_probability([logits], size),
    "probabilities": lambda logits, size: fullres.probabilities([logits], size, [0, 3]),
}


@pytest.mark.parametrize(("small", "size"), SIZES)
@pytest.mark.parametrize("predict", PREDICTIONS.values(), ids=PREDICTIONS)
def test_no_prediction_waits(
    card: FakeCard,
    predict: Callable[[Tensor, tuple[int, int]], object],
    small: tuple[int, int],
    size: tuple[int, int],
) -> None:
    for _ in range(2):
        card.forget()
        predict(torch.empty(2, 5, *small, device=CUDA), size)
    assert card.waits == []


def test_bands_multiply_with_matrices_of_a_few_rows(card: FakeCard) -> None:
    logits = torch.empty(16, 150, 128, 128, device=CUDA)
    fullres.cross_entropy(logits, batch_of(16, 512, 512)["labels"])
    assert max(launch.shape[1] for launch in card.kernels("bmm")) < 64  # rows of a band; a whole picture has 512


# ---------------------------------------------------------------------------------------------- evaluation and batches


def evaluated(count: int, *, at_their_size: bool) -> dict[str, Any]:
    made = batch_of(count, 64, 96)
    batch: dict[str, Any] = {"views": [made["images"]], "shown": [[(64, 96)]] * count}
    if at_their_size:
        return {**batch, "original_labels": [batch_of(1, 50 + n, 70)["labels"][0] for n in range(count)]}
    return {**batch, "labels": made["labels"]}


@pytest.mark.parametrize(
    ("amp", "flip", "at_their_size"),
    [("off", False, False), ("bf16", False, True), ("fp16", True, False), ("bf16", True, True)],
)
def test_an_evaluation_waits_only_for_its_scores(
    card: FakeCard, amp: str, flip: bool, at_their_size: bool, tiny_config: SegformerConfig
) -> None:
    model, config = model_of(tiny_config).eval(), TrainConfig(amp=amp, eval_flip=flip)
    matrix, total = DetailedConfusionMatrix(tiny_config.num_labels, 255, CUDA), torch.zeros((), device=CUDA)
    batch = evaluated(2, at_their_size=at_their_size)
    for _ in range(2):  # the first plans the bands
        card.forget()
        with torch.inference_mode():
            for logits, labels in score_views(model, batch, config):
                total += fullres.cross_entropy(logits[0], labels, 255, reduction="sum")
                matrix.update(fullres.argmax_of_mean(logits, labels.shape[-2:]), labels)
    assert card.waits == []
    matrix.scores()
    assert len(card.waits) == 2  # for what all pixels count, and for the details


@pytest.mark.parametrize("jitter", [None, ColorJitter()])
def test_augmentation_on_the_device_does_not_wait(card: FakeCard, jitter: ColorJitter | None) -> None:
    augment = AugmentOnDevice(jitter, 0, 1 / 255, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), reduce_labels=True)
    images = torch.empty(4, 3, 32, 48, dtype=torch.uint8, device=CUDA)
    made, labels = augment(images, torch.empty(4, 32, 48, dtype=torch.uint8, device=CUDA), [(0, n) for n in range(4)])
    assert (made.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert card.waits == []


# What CUDA's autocast would make of the decoder's maps, and what ours does there.
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_maps_in_low_precision_add_little_to_what_rounded_products_cost_already(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    config = VARIANTS["b0"](num_labels=20, decoder_hidden_size=64)
    decoder = AllMLPDecoder(config).train()
    features = [torch.randn(2, C, 32 // 2**n, 48 // 2**n) for n, C in enumerate(config.hidden_sizes)]
    labels = torch.randint(config.num_labels, (2, 128, 192))
    exact = gradients_of(decoder, features, labels, torch.float32, torch.float32)
    errors = []
    for maps in (torch.float32, dtype):
        rounded = gradients_of(decoder, features, labels, dtype, maps)
        errors.append([float((a - b).norm() / b.norm()) for a, b in zip(rounded, exact, strict=True)])
    for in_float32, as_ours in zip(*errors, strict=True):
        assert as_ours < 1.3 * in_float32


def gradients_of(
    decoder: AllMLPDecoder, features: list[Tensor], labels: Tensor, products: torch.dtype, maps: torch.dtype
) -> list[Tensor]:
    """Logits and gradients of a decoder that multiplies in one dtype, and keeps its maps in another."""
    features = [each.clone().requires_grad_() for each in features]

    def multiply(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x, weight, bias = (each.to(products).float() for each in (x, weight, bias))
        return (torch.einsum("bchw,kc->bkhw", x, weight) + bias[:, None, None]).to(products)

    weights, bias = decoder._stage_weights()
    shifts = [bias, *[torch.zeros_like(bias)] * 3]
    projected = [multiply(x, w, b).to(maps) for x, w, b in zip(features, weights, shifts, strict=True)]
    size = projected[0].shape[-2:]
    fused = torch.zeros((), dtype=maps)
    for each in [*projected[1:], projected[0]]:
        fused = fused + F.interpolate(each, size, mode="bilinear", align_corners=False)
    logits = multiply(decoder.norm(fused).relu(), decoder.classifier.weight[:, :, 0, 0], decoder.classifier.bias)
    fullres.plain_cross_entropy(logits, labels).backward()
    return [logits.detach().float(), *(each.grad for each in features if each.grad is not None)]


# --------------------------------------------------------------------------------------------------------------- ranks


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A process that torchrun started as its second, on a machine of two GPUs: those that it has chosen."""
    chosen: list[int] = []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


@pytest.mark.parametrize("asked", [None, "cuda", "cuda:0"])
def test_a_rank_asks_for_no_gpu_but_its_own(asked: str | None, two_gpus: list[int]) -> None:
    assert own_device(asked) == "cuda:1"
    assert two_gpus == [1]


def test_a_rank_that_is_to_run_on_the_cpu_touches_no_gpu(two_gpus: list[int]) -> None:
    assert own_device("cpu") == "cpu"
    assert two_gpus == []


def test_a_rank_without_a_gpu_of_its_own_is_refused(two_gpus: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="process 2 has no GPU of its own; there are 2"):
        own_device(None)


def test_a_plain_run_asks_for_what_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert (own_device(None), own_device("cuda:3")) == (None, "cuda:3")


def test_a_deterministic_run_does_not_fill_fresh_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    try:
        compute_deterministically()
        assert not torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(False)

"""The model against transformers, layer by layer, and against naive twins written from the equations."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from libraries import transformers
from PIL import Image
from torch import Tensor, nn

from segformer import VARIANTS, ImageProcessor, Segformer, SegformerConfig
from segformer.decoder import AllMLPDecoder
from segformer.dropout import relu_dropout_
from segformer.encoder import DropPath, EfficientSelfAttention, MixFFN, attend
from segformer.weights import dialects


class Pair(NamedTuple):
    """One set of random weights in two implementations."""

    ours: Segformer
    theirs: transformers.SegformerForSemanticSegmentation


Pairs = Callable[..., Pair]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """Make a pair from a variant's name and changed entries of its config; weights pass through files."""

    @cache
    def make(variant: str, **entries: float) -> Pair:
        config = transformers.SegformerConfig(**VARIANTS[variant](**entries).to_dict())
        torch.manual_seed(1)
        theirs = transformers.SegformerForSemanticSegmentation(config)
        disturb(theirs)
        folder = tmp_path_factory.mktemp(variant)
        theirs.save_pretrained(folder)
        return Pair(Segformer.from_pretrained(folder), theirs.eval())

    return make


def disturb(model: nn.Module) -> None:
    """Give every tensor values that show in the output, those that start as 0 or 1 too."""
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.ndim > 1:
            tensor.normal_(std=tensor[0].numel() ** -0.5)
        elif tensor.is_floating_point():
            tensor.add_(torch.randn_like(tensor), alpha=0.2)


def pictures(batch: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(2))


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    """As a share of the largest value."""
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize(
    ("variant", "batch", "height", "width"),
    [
        ("b0", 1, 64, 96),
        ("b0", 3, 64, 96),
        ("b0", 3, 97, 61),
        ("b0", 1, 30, 30),
        ("b0", 1, 511, 513),
        ("b1", 3, 33, 47),
        ("b2", 1, 64, 96),
        pytest.param("b3", 1, 64, 96, marks=pytest.mark.slow),
        pytest.param("b4", 1, 64, 96, marks=pytest.mark.slow),
        pytest.param("b5", 1, 64, 96, marks=pytest.mark.slow),
    ],
)
def test_logits_equal_transformers(pairs: Pairs, variant: str, batch: int, height: int, width: int) -> None:
    ours, theirs = pairs(variant)
    images = pictures(batch, height, width)
    with torch.no_grad():
        assert largest_difference(ours(images), theirs(images).logits) < 1e-5


@pytest.mark.parametrize(("height", "width"), [(64, 96), (97, 61)])
def test_features_of_every_stage_equal_transformers(pairs: Pairs, height: int, width: int) -> None:
    ours, theirs = pairs("b0")
    images = pictures(3, height, width)
    with torch.no_grad():
        expected = theirs(images, output_hidden_states=True).hidden_states
        found = ours.encoder(images)
    differences = [largest_difference(*maps) for maps in zip(found, expected, strict=True)]
    assert max(differences) < 1e-5, differences


@pytest.mark.parametrize(("variant", "height", "width"), [("b0", 64, 96), ("b0", 97, 61), ("b1", 64, 64)])
def test_gradients_equal_transformers(pairs: Pairs, variant: str, height: int, width: int) -> None:
    images = pictures(2, height, width)
    ours, theirs = (gradients(model, images) for model in pairs(variant))
    ours = dialects.to_v4(ours)
    theirs = dialects.to_v4(dialects.to_ours(theirs)[0])
    assert ours.keys() == theirs.keys()
    everything = math.sqrt(sum(gradient.square().sum().item() for gradient in theirs.values()))
    for name, gradient in theirs.items():
        difference = (ours[name] - gradient).norm()
        assert difference <= 1e-4 * gradient.norm() + 1e-7 * everything, name


def gradients(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    logits = model(images)
    logits = logits if isinstance(logits, Tensor) else logits.logits
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def test_every_parameter_gets_a_gradient(tiny_model: Segformer) -> None:
    found = gradients(tiny_model, pictures(2, 64, 64))
    without = [name for name, _ in tiny_model.named_parameters() if name not in found or not found[name].any()]
    assert not without, f"no gradient reaches {without}"


@pytest.mark.parametrize("variant", ["b0", "b1"])
def test_training_without_rates_equals_transformers(pairs: Pairs, variant: str) -> None:
    ours, theirs = pairs(variant, drop_path_rate=0.0, classifier_dropout_prob=0.0)
    images = pictures(3, 97, 61)
    with torch.no_grad():
        difference = largest_difference(ours.train()(images), theirs.train()(images).logits)
    assert difference < 1e-5


def test_training_moves_the_running_statistics_like_transformers(pairs: Pairs) -> None:
    ours, theirs = pairs("b0", drop_path_rate=0.0, classifier_dropout_prob=0.0, num_labels=3)
    with torch.no_grad():
        ours.train()(pictures(3, 64, 64))
        theirs.train()(pictures(3, 64, 64))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(ours.decoder.norm, name), getattr(theirs.decode_head.batch_norm, name))


@pytest.mark.real_data
def test_published_model_equals_transformers_on_a_photo(ade_checkpoint: Path, real_shards: Path) -> None:
    table = pq.read_table(real_shards / "scene_parsing/validation/0000.parquet", columns=["image"])
    photo = Image.open(BytesIO(table["image"][0]["bytes"].as_py())).convert("RGB")
    images = ImageProcessor(do_resize=False).image_to_tensor(photo)[None]
    ours = Segformer.from_pretrained(ade_checkpoint)
    theirs = transformers.SegformerForSemanticSegmentation.from_pretrained(ade_checkpoint).eval()
    with torch.no_grad():
        assert largest_difference(ours(images), theirs(images).logits) < 1e-5


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(500, 375, (125, 94)), (511, 513, (128, 129)), (30, 30, (8, 8)), (29, 32, (8, 8)), (65, 33, (17, 9))],
)
def test_logits_are_a_quarter_of_the_image_rounded_up(
    tiny_model: Segformer, height: int, width: int, expected: tuple[int, int]
) -> None:
    with torch.no_grad():
        assert tiny_model(pictures(1, height, width)).shape == (1, 7, *expected)


def test_features_are_finest_first_and_rounded_up(tiny_model: Segformer) -> None:
    with torch.no_grad():
        shapes = [tuple(feature.shape) for feature in tiny_model.encoder(pictures(2, 97, 61))]
    assert shapes == [(2, 8, 25, 16), (2, 16, 13, 8), (2, 24, 7, 4), (2, 32, 4, 2)]


def test_an_image_does_not_depend_on_its_batch(tiny_model: Segformer) -> None:
    images = pictures(3, 64, 64)
    with torch.no_grad():
        alone = torch.cat([tiny_model(image[None]) for image in images])
        assert largest_difference(tiny_model(images), alone) < 1e-5


def test_memory_format_of_the_images_does_not_matter(tiny_model: Segformer) -> None:
    images = pictures(2, 61, 97)
    with torch.no_grad():
        channels_last = tiny_model(images.contiguous(memory_format=torch.channels_last))
        assert largest_difference(channels_last, tiny_model(images)) < 1e-5


def test_autocast_stays_close_to_float32(pairs: Pairs) -> None:
    ours, _ = pairs("b0")
    images = pictures(2, 64, 96)
    with torch.no_grad():
        exact = ours(images)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = ours(images)
    # bfloat16 keeps 8 bits, 0.4 % a step, and errors of the layers add up like a random walk.
    assert 0 < (rounded.float() - exact).norm() / exact.norm() < 0.02


def test_a_new_decoder_starts_like_a_new_one_of_transformers() -> None:
    torch.manual_seed(0)
    ours = Segformer(SegformerConfig()).decoder.state_dict(prefix="decoder.")
    theirs = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(num_labels=150))
    expected, _ = dialects.to_ours(theirs.decode_head.state_dict(prefix="decode_head."))
    for name, tensor in expected.items():
        if tensor.ndim > 1:
            # The standard deviation of n random values is known to 1 / sqrt(2 n), and the fewest are 8192.
            assert ours[name].std().item() == pytest.approx(tensor.std().item(), rel=0.04), name
            assert ours[name].mean().item() == pytest.approx(0, abs=1e-3), name
        else:
            assert torch.equal(ours[name], tensor), name


def test_drop_path_rates_reach_the_blocks_in_order() -> None:
    config = SegformerConfig(drop_path_rate=0.3)
    rates = [module.rate for module in Segformer(config).encoder.modules() if isinstance(module, DropPath)]
    assert rates == config.drop_path_rates


def test_drop_path_drops_whole_samples() -> None:
    torch.manual_seed(0)
    dropped = DropPath(0.25).train()(torch.ones(64, 3, 5, 2))
    per_sample = dropped.flatten(1)
    assert (per_sample == per_sample[:, :1]).all()
    assert per_sample[:, 0].unique().tolist() == [0.0, pytest.approx(1 / 0.75)]


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_drop_path_keeps_the_expectation(rate: float) -> None:
    torch.manual_seed(0)
    samples = 200_000
    mean = DropPath(rate).train()(torch.ones(samples, 1)).mean().item()
    assert mean == pytest.approx(1.0, abs=5 * math.sqrt(rate / (1 - rate) / samples))  # five standard errors


def test_drop_path_is_the_identity_in_eval_mode() -> None:
    x = torch.randn(8, 3)
    assert torch.equal(DropPath(0.9).eval()(x), x)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (Image.new("RGB", (64, 64)), r"images is a Image; .* tensor \(B, 3, H, W\): of a photo, ImageProcessor"),
        ((torch.zeros(1, 3, 64, 64), None), r"images is a tuple; .* tensor"),
        (torch.zeros(3, 64, 64), r"images is \(3, 64, 64\); .*images\[None\] adds"),
        (torch.zeros(1, 64, 64, 3), r"images is \(1, 64, 64, 3\); .*images\.permute\(0, 3, 1, 2\)"),
        (torch.zeros(1, 4, 64, 64), r"images is \(1, 4, 64, 64\); .*\(B, 3, H, W\): its num_channels is 3"),
        (torch.zeros(64, 64), r"images is \(64, 64\); .*\(B, 3, H, W\)"),
        (torch.zeros(()), r"images is \(\); .*\(B, 3, H, W\)"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), r"images is of torch\.uint8; .*normalised"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.float64), r"images is of torch\.float64, the model of torch\.float32"),
        (torch.zeros(1, 3, 64, 64, device="meta"), r"images is on meta, the model on cpu"),
        (torch.zeros(1, 3, 64, 20), r"is 20; a map of 5 pixels is too small"),
        (torch.zeros(1, 3, 0, 64), r"is 0; a map of 0 pixels is too small"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_what_is_no_batch_is_refused_in_words_of_our_own(images: Any, message: str, tiny_model: Segformer) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model(images)


def test_a_model_of_four_bands_takes_four(tiny_config: SegformerConfig) -> None:
    model = Segformer(replace(tiny_config, num_channels=4))
    assert model(torch.zeros(1, 4, 64, 64)).shape == (1, 7, 16, 16)
    with pytest.raises(ValueError, match=r"images is \(1, 3, 64, 64\); the model takes \(B, 4, H, W\)"):
        model(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (VARIANTS["b1"], r"config is a function, .*call it: VARIANTS\['b0'\]"),
        (VARIANTS["b0"], r"config is a function, .*call it"),
        ("nvidia/mit-b0", r"config is a str, .*Segformer\.from_pretrained"),
        ({"depths": [2, 2, 2, 2]}, r"config is a dict, not a SegformerConfig"),
    ],
    ids=["b1", "b0", "name", "entries"],
)
def test_what_is_no_config_is_refused(config: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Segformer(config)


def attention_by_the_equations(attention: EfficientSelfAttention, x: Tensor, sr_ratio: int) -> Tensor:
    """Equations 1 and 2 of the paper, one head and one query at a time."""
    _, H, W, C = x.shape
    reduced = []
    for y in range(H // sr_ratio):
        for z in range(W // sr_ratio):
            token = x[0, y, z]
            if sr_ratio > 1:
                kernel, bias = attention.reduction.projection.weight, attention.reduction.projection.bias
                window = x[0, y * sr_ratio : (y + 1) * sr_ratio, z * sr_ratio : (z + 1) * sr_ratio]
                token = torch.stack([(kernel[c] * window.permute(2, 0, 1)).sum() + bias[c] for c in range(C)])
                token = layer_norm(token, attention.reduction.norm)
            reduced.append(token)
    d = C // attention.num_heads
    queries = [attention.query.weight @ token + attention.query.bias for token in x.reshape(-1, C)]
    both = [attention.key_value.weight @ token + attention.key_value.bias for token in reduced]
    keys, values = [pair[:C] for pair in both], [pair[C:] for pair in both]
    out = []
    for query in queries:
        heads = []
        for head in range(attention.num_heads):
            part = slice(head * d, (head + 1) * d)
            scores = [math.exp((query[part] @ key[part]).item() / math.sqrt(d)) for key in keys]
            weighted = [score / sum(scores) * value[part] for score, value in zip(scores, values, strict=True)]
            heads.append(torch.stack(weighted).sum(0))
        out.append(attention.out.weight @ torch.cat(heads) + attention.out.bias)
    return torch.stack(out).view(x.shape)


def layer_norm(token: Tensor, norm: nn.LayerNorm) -> Tensor:
    centred = token - token.mean()
    return centred / torch.sqrt(centred.square().mean() + 1e-5) * norm.weight + norm.bias


@pytest.mark.parametrize(("height", "width", "sr_ratio"), [(4, 6, 2), (3, 3, 1), (5, 7, 2), (4, 4, 4)])
@torch.no_grad()
def test_attention_equals_its_equations(height: int, width: int, sr_ratio: int) -> None:
    torch.manual_seed(0)
    attention = EfficientSelfAttention(6, 3, sr_ratio, attention_dropout=0.0, dropout=0.0).double().eval()
    disturb(attention)
    x = torch.randn(1, height, width, 6, dtype=torch.float64)
    torch.testing.assert_close(attention(x), attention_by_the_equations(attention, x, sr_ratio), rtol=0, atol=1e-12)


def attention_results(attend_by: Callable[..., Tensor], dtype: torch.dtype, keys: int) -> list[Tensor]:
    """What attention makes of the same random numbers in some precision, and the gradients of all that goes in."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 3, n, 32, generator=generator) for n in (300, keys, keys)]
    slope = torch.randn(2, 3, 300, 32, generator=generator)
    leaves = [values.bfloat16().to(dtype).requires_grad_() for values in inputs]
    out = attend_by(*leaves)
    return [out, *torch.autograd.grad(out, leaves, slope.bfloat16().to(dtype))]


@pytest.mark.parametrize("keys", [2, 64, 256, 401])
def test_attention_that_trains_in_bfloat16_errs_by_the_rounding_of_its_scores(keys: int) -> None:
    exact = attention_results(F.scaled_dot_product_attention, torch.float64, keys)
    ours = attention_results(attend, torch.bfloat16, keys)
    for mine, truth in zip(ours, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        # Scores reach 5 here; 8 bits hold them to 0.01, and their exponentials to 1 %.
        assert largest_difference(mine.double(), truth) < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attention_is_the_kernel_s_in_float32_and_better(dtype: torch.dtype) -> None:
    ours, kernel = (attention_results(by, dtype, 64) for by in (attend, F.scaled_dot_product_attention))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(ours, kernel, strict=True))


def mix_ffn_by_the_equation(ffn: MixFFN, x: Tensor) -> Tensor:
    """Equation 3 of the paper, one pixel at a time."""
    _, H, W, _ = x.shape
    wide = torch.stack([ffn.expand.weight @ token + ffn.expand.bias for token in x[0].flatten(0, 1)]).view(H, W, -1)
    out = torch.empty_like(x)
    for y in range(H):
        for z in range(W):
            mixed = ffn.depthwise.bias.clone()
            for i in (-1, 0, 1):
                for j in (-1, 0, 1):
                    if 0 <= y + i < H and 0 <= z + j < W:
                        mixed += ffn.depthwise.weight[:, 0, i + 1, j + 1] * wide[y + i, z + j]
            gelu = 0.5 * mixed * (1 + torch.erf(mixed / math.sqrt(2)))
            out[0, y, z] = ffn.contract.weight @ gelu + ffn.contract.bias
    return out


@torch.no_grad()
def test_mix_ffn_equals_its_equation() -> None:
    torch.manual_seed(0)
    ffn = MixFFN(4, 8, dropout=0.0).double().eval()
    disturb(ffn)
    x = torch.randn(1, 3, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(ffn(x), mix_ffn_by_the_equation(ffn, x), rtol=0, atol=1e-12)


def textbook_decoder(decoder: AllMLPDecoder, features: list[Tensor], kept: Tensor | float = 1.0) -> Tensor:
    """The four steps of section 3.2 as the paper has them: project, upsample, concatenate and fuse, classify.

    ``kept`` is the dropout's mask, with its scale in it.
    """
    size = features[0].shape[-2:]
    projected = [
        linear(feature.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        for linear, feature in zip(decoder.projections, features, strict=True)
    ]
    upsampled = [F.interpolate(maps, size, mode="bilinear", align_corners=False) for maps in projected]
    fused = F.relu(decoder.norm(decoder.fuse(torch.cat(upsampled[::-1], dim=1))))
    return decoder.classifier(fused * kept)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [
        [(16, 16), (8, 8), (4, 4), (2, 2)],
        [(25, 16), (13, 8), (7, 4), (4, 2)],
        [(9, 7), (5, 4), (3, 2), (1, 1)],
        [(6, 11), (7, 3), (2, 9), (1, 5)],
    ],
)
def test_decoder_equals_the_textbook_form(
    tiny_config: SegformerConfig, sizes: list[tuple[int, int]], training: bool
) -> None:
    torch.manual_seed(0)
    decoder = AllMLPDecoder(SegformerConfig(**vars(tiny_config) | {"classifier_dropout_prob": 0.0})).double()
    disturb(decoder)
    decoder.train(training)
    features = [
        torch.randn(2, channels, *size, dtype=torch.float64, requires_grad=True)
        for channels, size in zip(tiny_config.hidden_sizes, sizes, strict=True)
    ]
    sources = [*features, *decoder.parameters()]
    ours, textbook = decoder(features), textbook_decoder(decoder, features)
    torch.testing.assert_close(ours, textbook, rtol=0, atol=1e-12)

    slope = torch.randn_like(textbook)
    gradients_of = [torch.autograd.grad(logits, sources, slope) for logits in (ours, textbook)]
    for mine, plain in zip(*gradients_of, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-10, atol=1e-10)


def test_decoder_drops_what_the_textbook_form_drops_with_the_same_draw(tiny_config: SegformerConfig) -> None:
    torch.manual_seed(0)
    decoder = AllMLPDecoder(SegformerConfig(**vars(tiny_config) | {"classifier_dropout_prob": 0.4})).double().train()
    disturb(decoder)
    features = [torch.randn(2, c, 8 // 2**i, 8 // 2**i).double() for i, c in enumerate(tiny_config.hidden_sizes)]
    torch.manual_seed(7)
    kept, scale = relu_dropout_(torch.ones(2, tiny_config.decoder_hidden_size, 8, 8).double(), 0.4)
    assert 0 < (kept == 0).double().mean() < 1
    torch.manual_seed(7)
    torch.testing.assert_close(decoder(features), textbook_decoder(decoder, features, kept * scale), rtol=0, atol=1e-12)


def test_a_decoder_told_to_drop_channels_drops_whole_ones(tiny_config: SegformerConfig) -> None:
    torch.manual_seed(0)
    decoder = AllMLPDecoder(SegformerConfig(**vars(tiny_config) | {"classifier_dropout_prob": 0.4})).double().train()
    decoder.drops_channels = True
    disturb(decoder)
    features = [torch.randn(2, c, 8 // 2**i, 8 // 2**i).double() for i, c in enumerate(tiny_config.hidden_sizes)]
    torch.manual_seed(7)
    kept, scale = relu_dropout_(torch.ones(2, tiny_config.decoder_hidden_size, 1, 1).double(), 0.4, whole_channels=True)
    assert 0 < (kept == 0).double().mean() < 1
    torch.manual_seed(7)
    torch.testing.assert_close(decoder(features), textbook_decoder(decoder, features, kept * scale), rtol=0, atol=1e-12)

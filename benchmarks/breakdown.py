"""Where a training step's time goes, ours beside transformers', with the floor under each phase.

    python -m benchmarks.breakdown --save cpu

The floor is the larger of two times: the phase's FLOPs over the rate of a large matrix product, and the bytes that it
must at least read and write over the bandwidth of a copy, both measured in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import flops, measure, peers
from data.classes import ID2LABEL
from segformer import VARIANTS, Segformer, fullres

_COLUMNS = ["phase", "ms", "peer_ms", "ratio", "gflop", "peer_gflop", "floor_ms"]
_PHASES = ("encoder forward", "decoder forward", "loss and its gradient", "decoder backward", "encoder backward")


class Phases:
    """The phases of one side's training step, each ready to be run again and again on what the ones before it gave."""

    def __init__(
        self,
        encode: Callable[[Tensor], Sequence[Tensor]],
        decode: Callable[[Sequence[Tensor]], Tensor],
        loss_of: Callable[[Tensor, Tensor], Tensor],
        weights: tuple[list[Tensor], list[Tensor]],
        images: Tensor,
        labels: Tensor,
    ) -> None:
        encoder_weights, decoder_weights = weights
        features = encode(images)
        leaves = [feature.detach().requires_grad_() for feature in features]
        logits = decode(leaves)
        leaf = logits.detach().requires_grad_()

        def loss_and_gradient() -> tuple[Tensor, ...]:
            return torch.autograd.grad(loss_of(leaf, labels), leaf)

        def decoder_backward() -> tuple[Tensor, ...]:
            return torch.autograd.grad(logits, [*leaves, *decoder_weights], slope, retain_graph=True)

        def encoder_backward() -> tuple[Tensor, ...]:
            return torch.autograd.grad(features, encoder_weights, slopes, retain_graph=True)

        slope = loss_and_gradient()[0]
        slopes = decoder_backward()[: len(leaves)]
        ways = (lambda: encode(images), lambda: decode(leaves), loss_and_gradient, decoder_backward, encoder_backward)
        self.ways: dict[str, Callable[[], Any]] = dict(zip(_PHASES, ways, strict=True))
        maps, head = [*features], [logits]
        self.megabytes = {
            "encoder forward": _megabytes([images, *maps, *encoder_weights]),
            "decoder forward": _megabytes([*maps, *head, *decoder_weights]),
            "loss and its gradient": _megabytes([logits, labels, logits]),
            "decoder backward": _megabytes([*head, *maps, *maps, *decoder_weights, *decoder_weights]),
            "encoder backward": _megabytes([*maps, images, *encoder_weights, *encoder_weights]),
        }


def _megabytes(tensors: Sequence[Tensor]) -> float:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6


def _copy_megabytes_per_second(device: torch.device) -> float:
    source = torch.randn(2**26, device=device)
    target = torch.empty_like(source)
    seconds = measure.alternate({"copy": lambda: target.copy_(source)}, device, repeats=5)["copy"]
    return 2 * _megabytes([source]) / statistics.median(seconds)


def _gflop(options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """The products of every phase, ours and the peer's; backward is two for each of forward's."""
    config, size = VARIANTS[options.variant](id2label=ID2LABEL), (options.size, options.size)
    h, w = flops.map_sizes(config, size)[0]
    logits = torch.empty(options.batch_size, config.num_labels, h, w, device=options.device)
    encoder, ours, theirs = (
        options.batch_size * count(config, size) / 1e9
        for count in (flops.encoder, flops.decoder, flops.textbook_decoder)
    )
    pairs = [
        (encoder, encoder),
        (ours, theirs),
        (flops.banded_loss(logits, size) / 1e9, 0.0),
        (2 * ours, 2 * theirs),
        (2 * encoder, 2 * encoder),
    ]
    return dict(zip(_PHASES, pairs, strict=True))


def both_sides(options: argparse.Namespace) -> tuple[Phases, Phases]:
    """Our phases and the peer's, from the same weights."""
    device = torch.device(options.device)
    torch.manual_seed(0)
    rates = {"drop_path_rate": 0.0, "classifier_dropout_prob": 0.0}
    model = Segformer(VARIANTS[options.variant](id2label=ID2LABEL, **rates)).to(device).train()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        peer = peers.transformers_model(folder, device).train()
    side = options.size
    images = torch.randn(options.batch_size, 3, side, side, device=device)
    labels = torch.randint(0, 150, (options.batch_size, side, side), device=device)
    our_weights = ([*model.encoder.parameters()], [*model.decoder.parameters()])
    their_weights = ([*peer.segformer.parameters()], [*peer.decode_head.parameters()])
    ours = Phases(
        model.encoder, lambda maps: model.decoder(list(maps)), fullres.cross_entropy, our_weights, images, labels
    )
    theirs = Phases(
        lambda pixels: peer.segformer(pixels, output_hidden_states=True).hidden_states,
        lambda maps: peer.decode_head(tuple(maps)),
        peers.plain_loss,
        their_weights,
        images,
        labels,
    )
    return ours, theirs


def main() -> None:
    """Measure every phase."""
    parser = measure.flags(__doc__, "breakdown", repeats=9)
    parser.add_argument("--variant", choices=tuple(VARIANTS), default="b0")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=2)
    options = parser.parse_args()
    device = torch.device(options.device)
    ours, theirs = both_sides(options)
    gflop_rate = measure.matmul_gflop_per_second(device, torch.float32)
    copy_rate = _copy_megabytes_per_second(device)
    gflop, rows = _gflop(options), []
    for phase in _PHASES:
        ways = {"ours": ours.ways[phase], "peer": theirs.ways[phase]}
        row: dict[str, Any] = {"phase": phase, **measure.side_by_side(ways, device, options.repeats)}
        row |= dict(zip(("gflop", "peer_gflop"), gflop[phase], strict=True))
        row["floor_ms"] = 1e3 * max(row["gflop"] / gflop_rate, ours.megabytes[phase] / copy_rate)
        rows.append(row)
    total: dict[str, Any] = {"phase": "together", **{name: sum(row[name] for row in rows) for name in _COLUMNS[1:]}}
    total["ratio"] = total["peer_ms"] / total["ms"]
    measure.report("breakdown", measure.machine_card(device), [*rows, total], _COLUMNS, options.save)


if __name__ == "__main__":
    main()

"""Images a second of a training step and of photo to label map, against other libraries on the same weights and inputs.

    python -m benchmarks.throughput --mode train --batch-size 2 --against transformers
    python -m benchmarks.throughput --mode infer --against transformers,smp

The step is ``train_step`` of train.py itself. A peer gets its own better setting: SDPA attention where it can, fused
AdamW, its own memory layout. Before anything is timed, the first step's loss and gradient norm, or the label maps, are
compared with each of them. ``smp`` is segmentation_models_pytorch, which has to be installed for it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from itertools import product
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks import flops, measure, peers
from benchmarks.worker import alone
from data.classes import ID2LABEL
from segformer import VARIANTS, ImageProcessor, Segformer, Segmenter
from segformer.training.graphs import StepGraphs
from segformer.training.precision import amp_dtype, autocast
from train import TrainConfig, build_optimizer, train_step

_COLUMNS = ["variant", "size", "batch_size", "dtype", "compile", "images_per_second", "ms"]
# How a row's entries about a peer begin, and those about both sides: transformers came first and has the plain names.
_PREFIXES = {"transformers": ("peer_", ""), "smp": ("smp_", "smp_")}
_MEMORY_SHARE = 0.6  # of the free memory: a row that is expected to need more is predicted, not tried
_PHOTO = (683, 512)  # width and height of a common ADE20K photo


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What to measure; options with several values measure every combination."""
    parser = measure.flags(__doc__, "throughput", repeats=7)
    parser.add_argument("--mode", choices=("train", "infer"), default="train")
    parser.add_argument("--variant", nargs="+", choices=tuple(VARIANTS), default=["b0"])
    parser.add_argument("--size", nargs="+", type=int, default=[512], help="side of the model's input in pixels")
    parser.add_argument("--batch-size", nargs="+", type=int, default=[2], help="of a training step; infer takes one")
    parser.add_argument("--amp", nargs="+", choices=("off", "bf16", "fp16"), default=["off"])
    parser.add_argument("--compile", action="store_true", help="torch.compile every side")
    parser.add_argument(
        "--against", type=_peers, default=[], metavar="PEERS", help=f"measure them too: {','.join(peers.PEERS)}, or one"
    )
    parser.add_argument("--memory", action="store_true", help="also the peak memory; on a CPU in fresh processes")
    return parser.parse_args(words)


def _peers(names: str) -> list[str]:
    """The peers of a comma list, all of them installed."""
    chosen = list(dict.fromkeys(names.split(",")))
    for name in chosen:
        if name not in peers.PEERS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(peers.PEERS)}")
        peers.require(name)
    return chosen


class Case:
    """One row of the table: a model, its peers with the same weights, and the same work for all."""

    def __init__(self, options: argparse.Namespace, variant: str, size: int, batch_size: int, amp: str) -> None:
        self.options = options
        self.like = options, variant, size, batch_size, amp
        self.facts = {"mode": options.mode, "variant": variant, "size": size, "amp": amp, "compile": options.compile}
        self.facts["batch_size"] = batch_size if options.mode == "train" else 1
        self.size = size
        self.device = torch.device(options.device)
        # No dropout and no drop path: two libraries draw differently, and what is compared must be equal.
        self.config = TrainConfig(amp=amp, compile=options.compile, per_device_train_batch_size=batch_size)
        torch.manual_seed(0)
        rates = {"drop_path_rate": 0.0, "classifier_dropout_prob": 0.0}
        self.model = Segformer(VARIANTS[variant](id2label=ID2LABEL, **rates)).to(self.device)
        self.folder = tempfile.TemporaryDirectory()
        self.model.save_pretrained(self.folder.name)
        ImageProcessor(size=(size, size)).save_pretrained(self.folder.name)
        images = torch.randn(batch_size, 3, size, size, device=self.device)
        labels = torch.randint(0, 150, (batch_size, size, size), device=self.device)
        labels[:, : size // 16] = 255
        self.batch = {"images": images, "labels": labels}

    def run(self) -> dict[str, Any]:
        """Measure the row."""
        sides = {"ours": self.ours(), **{name: self.peer(name) for name in self.options.against}}
        first = {name: run() for name, run in sides.items()}
        for name in self.options.against:
            prefix = _PREFIXES[name][1]
            differences = self.compare(name, first["ours"], first[name])
            self.facts |= {prefix + measured: value for measured, value in differences.items()}
        seconds = measure.alternate(sides, self.device, self.options.repeats)
        row = {**self.facts, "dtype": str(amp_dtype(self.config.amp, self.device) or torch.float32).split(".")[1]}
        median = statistics.median(seconds["ours"])
        row |= {"images_per_second": row["batch_size"] / median, **measure.spread_ms(seconds["ours"])}
        row |= self.count_flops(median)
        for name in self.options.against:
            own, shared = _PREFIXES[name]
            row |= {own + measured: value for measured, value in measure.spread_ms(seconds[name]).items()}
            row[shared + "ratio"] = statistics.median(seconds[name]) / median
        return row | (self.peak_memories(sides) if self.options.memory else {})

    def peak_memories(self, sides: Mapping[str, Callable[[], Any]]) -> dict[str, float | None]:
        """The peak memory of every side, and ours as a share of each peer's.

        CUDA counts what is taken; on a CPU each side runs in a process that has run nothing else.
        """
        peaks = {}
        for name, run in sides.items():
            on_cuda = self.device.type == "cuda"
            peaks[name] = (
                measure.peak_memory_mib(run, self.device) if on_cuda else alone(partial(_peak, self.like, name))
            )
        row = {"peak_memory_mib": peaks["ours"]}
        for name in self.options.against:
            own, shared = _PREFIXES[name]
            ours, theirs = peaks["ours"], peaks[name]
            row[own + "peak_memory_mib"] = theirs
            row[shared + "memory_ratio"] = ours / theirs if ours and theirs else None
        return row

    def count_flops(self, seconds: float) -> dict[str, float]:
        """The work of one run in GFLOP (multiply and add counted apart), and its rate as a share of a product's."""
        dtype = amp_dtype(self.config.amp, self.device) or torch.float32
        passes = 3 if self.options.mode == "train" else 1  # backward is two products for each of forward's
        gflop = self.facts["batch_size"] * passes * flops.model(self.model.config, (self.size, self.size)) / 1e9
        share = gflop / seconds / measure.matmul_gflop_per_second(self.device, dtype)
        return {"gflop": gflop, "share_of_matmul_rate": share}

    def ours(self, graphs: StepGraphs | None = None) -> Callable[[], Any]:
        """Our side of the work, ready to be run again and again; a training step by ``graphs``, if there are any."""
        if self.options.mode == "infer":
            segmenter = Segmenter(self.model, ImageProcessor(size=(self.size, self.size)), self.device)
            if self.options.compile:
                self.model.compile()
            return lambda: self._our_label_map(segmenter)
        model = self.model.train()
        if self.options.compile:
            model.compile(dynamic=False)  # as train.py does
        optimizer = build_optimizer(model, self.config)
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.config.amp == "fp16")
        step = model, optimizer, scaler, self.batch, self.config
        return (lambda: graphs.take(train_step, *step)) if graphs else lambda: train_step(*step)

    def _our_label_map(self, segmenter: Segmenter) -> Any:
        with autocast(self.config.amp, self.device):
            return segmenter.label_map(photo())

    def peer(self, name: str) -> Callable[[], Any]:
        """The same work by a peer, from the same weights."""
        peer = peers.PEERS[name](self.folder.name, self.device, self.options.mode)
        if self.options.compile:
            peer.compile()
        if self.options.mode == "infer":
            return lambda: peer.label_map(photo(), autocast(self.config.amp, self.device)).numpy()
        return self._peer_step(peer)

    def _peer_step(self, peer: peers.Peer) -> Callable[[], Any]:
        weights = list(peer.model.parameters())
        optimizer = torch.optim.AdamW(weights, lr=self.config.learning_rate, weight_decay=0.0, fused=True)
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.config.amp == "fp16")

        def step() -> tuple[Tensor, Tensor]:
            optimizer.zero_grad(set_to_none=True)
            with autocast(self.config.amp, self.device):
                loss = peer.loss(self.batch["images"], self.batch["labels"])
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.unscale_(optimizer)
            norm = torch.nn.utils.clip_grad_norm_(weights, self.config.max_grad_norm)
            scaler.step(optimizer)
            scaler.update()
            return loss.detach(), norm

        return step

    def compare(self, name: str, ours: Any, theirs: Any) -> dict[str, float]:
        """How far the first results of two sides are apart; stops the benchmark when that is too far."""
        if self.options.mode == "infer":
            agreement = float(np.mean(ours == theirs))
            self._require(agreement >= (0.9999 if self.config.amp == "off" else 0.98), name, f"agreement {agreement}")
            return {"pixel_agreement": agreement}
        differences = {
            measured: abs(float(our) / float(their) - 1.0)
            for measured, our, their in zip(("loss_difference", "grad_norm_difference"), ours, theirs, strict=True)
        }
        limit = 1e-4 if self.config.amp == "off" else 3e-2  # in bfloat16 three digits are all there are
        self._require(all(value < limit for value in differences.values()), name, str(differences))
        return differences

    def _require(self, equal: bool, name: str, measured: str) -> None:
        if not equal:
            raise SystemExit(f"{self.facts}: {name} does not give the same result ({measured}); nothing was timed")


def photo() -> Image.Image:
    """A photo-like picture, the same each time: smooth, so that its label map has regions."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(_PHOTO, Image.Resampling.BICUBIC)


def _peak(like: tuple[Any, ...], side: str) -> float | None:
    """The peak memory of one side of a case like another, in this process."""
    case = Case(*like)
    return measure.peak_memory_mib(case.ours() if side == "ours" else case.peer(side), case.device)


def predict(rows: list[dict[str, Any]], variant: str, size: int, batch_size: int, amp: str) -> dict[str, Any] | None:
    """A row from the largest one measured with these settings, grown with the pixels; None if there is none."""
    like = [row for row in rows if (row["variant"], row["amp"]) == (variant, amp) and not row["predicted"]]
    if not like:
        return None
    base = max(like, key=lambda row: row["batch_size"] * row["size"] ** 2)
    growth = batch_size * size**2 / (base["batch_size"] * base["size"] ** 2)
    kept = ("mode", "variant", "amp", "compile", "dtype", "ratio", "smp_ratio")
    row: dict[str, Any] = {name: base[name] for name in kept if name in base}
    row |= {"size": size, "batch_size": batch_size, "predicted": True}
    memory = [name for name in ("peak_memory_mib", "peer_peak_memory_mib", "smp_peak_memory_mib") if base.get(name)]
    grows = [name for name in ("ms", "peer_ms", "smp_ms", "gflop", *memory) if name in base]
    row |= {name: base[name] * growth for name in grows}
    row["images_per_second"] = 1e3 * batch_size / row["ms"]
    row["needed_mib"] = max((row[name] for name in memory), default=0.0)
    return row


def main() -> None:
    """Measure every combination that was asked for."""
    options = parse_arguments()
    rows: list[dict[str, Any]] = []
    for values in product(options.variant, options.size, options.batch_size, options.amp):
        predicted = predict(rows, *values) if options.memory else None
        if predicted and predicted["needed_mib"] > _MEMORY_SHARE * measure.free_memory_mib(options.device):
            rows.append(predicted)
            continue
        rows.append({**Case(options, *values).run(), "predicted": False})
    card = measure.machine_card(torch.device(options.device))
    if "smp" in options.against:
        card["segmentation_models_pytorch"] = version("segmentation_models_pytorch")
    measure.report("throughput", card, rows, _columns(options.against, rows), options.save)


def _columns(against: list[str], rows: list[dict[str, Any]]) -> list[str]:
    """The columns of the printed table."""
    columns = list(_COLUMNS)
    for name in against:
        own, shared = _PREFIXES[name]
        columns += [own + "ms", shared + "ratio"]
    columns += ["predicted"] if any(row["predicted"] for row in rows) else []
    return columns + [name for name in rows[0] if name.endswith(("peak_memory_mib", "memory_ratio"))]


if __name__ == "__main__":
    main()

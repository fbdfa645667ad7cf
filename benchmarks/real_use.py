"""A training step and a photo to its label map as in real use, against transformers with each allocator.

    python -m benchmarks.real_use

Every side runs in a process of its own, and they take turns, of which the second step counts. train.py and infer.py
have glibc keep what is freed; transformers is measured as it comes and with the same done for it, each time in both
memory layouts, of which the faster counts. Steps are timed with dropout and drop path on; before that, first steps
without them, and label maps, are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import measure, peers, throughput
from data.classes import ID2LABEL
from segformer import VARIANTS, ImageProcessor, Segformer, Segmenter
from segformer.machine import keep_freed_memory
from segformer.training.precision import autocast
from train import TrainConfig, build_optimizer, train_step

# Sides by name: whose step, whether freed memory is kept, whether the peer's tensors are channels-last.
_SIDES = {
    "ours": ("ours", True, False),
    "ours, memory not kept": ("ours", False, False),
    "peer": ("transformers", False, False),
    "peer, channels-last": ("transformers", False, True),
    "peer, memory kept": ("transformers", True, False),
    "peer, memory kept, channels-last": ("transformers", True, True),
}
_WORK = ("step", "photo")
_COLUMNS = ["work", "dtype", "peers_memory", "ms", "peer_ms", "peer_layout", "ratio"]


def parse_arguments() -> argparse.Namespace:
    """What to measure."""
    parser = measure.flags(__doc__, "real_use", repeats=7, on_device=False)
    parser.add_argument("--work", nargs="+", choices=_WORK, default=list(_WORK))
    parser.add_argument("--variant", choices=tuple(VARIANTS), default="b0")
    parser.add_argument("--size", type=int, default=512, help="side of the images in pixels")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--amp", nargs="+", choices=("off", "bf16"), default=["off", "bf16"])
    parser.add_argument("--side", choices=tuple(_SIDES), help=argparse.SUPPRESS)
    return parser.parse_args()


def make_photo(options: argparse.Namespace, amp: str, side: str) -> Callable[[], list[float]]:
    """A photo to its label map by a side, which returns the pixels of every class."""
    library, _, is_channels_last = _SIDES[side]
    torch.manual_seed(0)
    device, photo = torch.device("cpu"), throughput.photo()
    model = Segformer(VARIANTS[options.variant](id2label=ID2LABEL)).eval()
    processor = ImageProcessor(size=(options.size, options.size))
    segmenter = Segmenter(model, processor, device)
    peer = _peer(model, processor, "infer", is_channels_last) if library == "transformers" else None

    def label_map() -> list[float]:
        with autocast(amp, device):
            made = segmenter.label_map(photo) if peer is None else peer.label_map(photo, nullcontext()).numpy()
        return np.bincount(made.ravel(), minlength=len(ID2LABEL)).astype(float).tolist()

    return label_map


def _peer(model: Segformer, processor: ImageProcessor, mode: str, is_channels_last: bool) -> peers.TransformersPeer:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        peer = peers.TransformersPeer(folder, torch.device("cpu"), mode)
    if is_channels_last:
        peer.model.to(memory_format=torch.channels_last)
    return peer


def make_step(options: argparse.Namespace, amp: str, side: str, dropout: bool) -> Callable[[], list[float]]:
    """One step of a side, which returns loss and gradient norm."""
    library, _, is_channels_last = _SIDES[side]
    torch.manual_seed(0)
    rates = {} if dropout else {"drop_path_rate": 0.0, "classifier_dropout_prob": 0.0}
    model = Segformer(VARIANTS[options.variant](id2label=ID2LABEL, **rates))
    images = torch.randn(options.batch_size, 3, options.size, options.size)
    labels = torch.randint(0, 150, (options.batch_size, options.size, options.size))
    labels[:, : options.size // 16] = 255
    config = TrainConfig(amp=amp, per_device_train_batch_size=options.batch_size)
    if library == "ours":
        model.train()
        optimizer, scaler = build_optimizer(model, config), torch.amp.GradScaler("cpu", enabled=False)

        def our_step() -> list[float]:
            result = train_step(model, optimizer, scaler, {"images": images, "labels": labels}, config)
            return [float(result.loss), float(result.grad_norm)]

        return our_step
    peer = _peer(model, ImageProcessor(), "train", is_channels_last)
    if is_channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    weights = list(peer.model.parameters())
    peers_optimizer = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=0.0, fused=True)

    def peers_step() -> list[float]:
        peers_optimizer.zero_grad(set_to_none=True)
        with autocast(amp, torch.device("cpu")):
            loss = peer.loss(images, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(weights, config.max_grad_norm)
        peers_optimizer.step()
        return [float(loss.detach()), float(norm)]

    return peers_step


def serve(options: argparse.Namespace) -> None:
    """One side's process: first what is compared, then timed work for every line that comes in."""
    if _SIDES[options.side][1] and not keep_freed_memory():
        raise SystemExit("no glibc whose memory could be kept")
    amp = options.amp[0]
    if options.work == ["photo"]:
        work = make_photo(options, amp, options.side)
        print(json.dumps(work()), flush=True)
    else:
        print(json.dumps(make_step(options, amp, options.side, dropout=False)()), flush=True)
        work = make_step(options, amp, options.side, dropout=True)
    for _ in sys.stdin:
        work()  # not counted: while others had their turn caches were lost, and memory may have been, as in no run
        started = time.perf_counter()
        work()
        print(time.perf_counter() - started, flush=True)


class Side:
    """The process of a side, as its parent sees it."""

    def __init__(self, options: argparse.Namespace, work: str, amp: str, name: str) -> None:
        words = [
            "--work",
            work,
            "--variant",
            options.variant,
            "--size",
            str(options.size),
            "--batch-size",
            str(options.batch_size),
        ]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.real_use", *words, "--amp", amp, "--side", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        )
        self.first = json.loads(self._answer())
        self.run()  # the first is not counted
        self.seconds: list[float] = []

    def run(self) -> float:
        """The seconds of its work, done once."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._answer())

    def end(self) -> None:
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a side ended with status {self._process.wait()}; its error stands above")
        return line


def measure_work(options: argparse.Namespace, work: str, amp: str) -> list[dict[str, Any]]:
    """The rows of one work in one precision: the peer as it comes, and with its memory kept."""
    sides = {name: Side(options, work, amp, name) for name in _SIDES}
    first = sides["ours"].first
    for name, side in sides.items():
        differences = [abs(our - their) for our, their in zip(first, side.first, strict=True)]
        apart = sum(differences) / 2 / sum(first) if work == "photo" else max(np.divide(differences, first))
        if apart > (1e-4 if amp == "off" else 3e-2):
            raise SystemExit(f"{name} does not give the same result (relative difference {apart}); nothing was timed")
    for _ in range(options.repeats):
        for side in sides.values():
            side.seconds.append(side.run())
    for side in sides.values():
        side.end()
    medians = {name: statistics.median(side.seconds) for name, side in sides.items()}
    rows = []
    for kept, memory in (("", "as it comes"), (", memory kept", "kept")):
        layouts = {"contiguous": medians[f"peer{kept}"], "channels-last": medians[f"peer{kept}, channels-last"]}
        layout = min(layouts, key=lambda each: layouts[each])
        spread = measure.spread_ms(sides["ours"].seconds)
        row = {
            "work": work,
            "dtype": {"off": "float32", "bf16": "bfloat16"}[amp],
            "peers_memory": memory,
            "peer_layout": layout,
        }
        row |= {"variant": options.variant, "size": options.size, "batch_size": options.batch_size, **spread}
        row |= {"peer_ms": round(1e3 * layouts[layout], 3), "ratio": layouts[layout] / medians["ours"]}
        rows.append(row | {"ms_not_kept": round(1e3 * medians["ours, memory not kept"], 3)})
    return rows


def main() -> None:
    """Measure what was asked for; photos in float32 alone."""
    options = parse_arguments()
    if options.side:
        serve(options)
        return
    cases = [(work, amp) for work in options.work for amp in options.amp if work == "step" or amp == "off"]
    rows = [row for case in cases for row in measure_work(options, *case)]
    measure.report("real_use", measure.machine_card(torch.device("cpu")), rows, _COLUMNS, options.save)


if __name__ == "__main__":
    main()

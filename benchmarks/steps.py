"""A training step as it is in real training, dropout and drop path on, against transformers with each allocator.

    python -m benchmarks.steps

Every side runs in a process of its own, and they take turns. train.py has glibc keep what is freed; transformers is
measured as it comes and with the same done for it, each time in both memory layouts, of which the faster counts. Before
anything is timed, first steps without dropout are compared.
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
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure, peers
from data.classes import ID2LABEL
from segformer import VARIANTS, ImageProcessor, Segformer
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
_COLUMNS = ["dtype", "peers_memory", "ms", "peer_ms", "peer_layout", "ratio"]


def parse_arguments() -> argparse.Namespace:
    """What to measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=tuple(VARIANTS), default="b0")
    parser.add_argument("--size", type=int, default=512, help="side of the images in pixels")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--amp", nargs="+", choices=("off", "bf16"), default=["off", "bf16"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--save", metavar="NAME", help="keep the rows as results/steps-NAME.json")
    parser.add_argument("--side", choices=tuple(_SIDES), help=argparse.SUPPRESS)
    return parser.parse_args()


def make_step(options: argparse.Namespace, amp: str, side: str, dropout: bool) -> Callable[[], tuple[float, float]]:
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

        def our_step() -> tuple[float, float]:
            result = train_step(model, optimizer, scaler, {"images": images, "labels": labels}, config)
            return float(result.loss), float(result.grad_norm)

        return our_step
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        ImageProcessor().save_pretrained(folder)
        peer = peers.TransformersPeer(folder, torch.device("cpu"), "train")
    if is_channels_last:
        peer.model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    weights = list(peer.model.parameters())
    peers_optimizer = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=0.0, fused=True)

    def peers_step() -> tuple[float, float]:
        peers_optimizer.zero_grad(set_to_none=True)
        with autocast(amp, torch.device("cpu")):
            loss = peer.loss(images, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(weights, config.max_grad_norm)
        peers_optimizer.step()
        return float(loss.detach()), float(norm)

    return peers_step


def serve(options: argparse.Namespace) -> None:
    """One side's process: a first step without dropout, then a timed step for every line that comes in."""
    if _SIDES[options.side][1] and not keep_freed_memory():
        raise SystemExit("no glibc whose memory could be kept")
    print(json.dumps(make_step(options, options.amp[0], options.side, dropout=False)()), flush=True)
    step = make_step(options, options.amp[0], options.side, dropout=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        step()
        print(time.perf_counter() - started, flush=True)


class Side:
    """The process of a side, as its parent sees it."""

    def __init__(self, options: argparse.Namespace, amp: str, name: str) -> None:
        words = ["--variant", options.variant, "--size", str(options.size), "--batch-size", str(options.batch_size)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.steps", *words, "--amp", amp, "--side", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        )
        self.first = json.loads(self._answer())
        self.run()  # the first is not counted
        self.seconds: list[float] = []

    def run(self) -> float:
        """The seconds of a step."""
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


def measure_precision(options: argparse.Namespace, amp: str) -> list[dict[str, Any]]:
    """The rows of one precision: the peer as it comes, and with its memory kept."""
    sides = {name: Side(options, amp, name) for name in _SIDES}
    first = sides["ours"].first
    for name, side in sides.items():
        apart = max(abs(our / their - 1) for our, their in zip(first, side.first, strict=True))
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
        row = {"dtype": {"off": "float32", "bf16": "bfloat16"}[amp], "peers_memory": memory, "peer_layout": layout}
        row |= {"variant": options.variant, "size": options.size, "batch_size": options.batch_size, **spread}
        row |= {"peer_ms": round(1e3 * layouts[layout], 3), "ratio": layouts[layout] / medians["ours"]}
        rows.append(row | {"ms_not_kept": round(1e3 * medians["ours, memory not kept"], 3)})
    return rows


def main() -> None:
    """Measure every precision that was asked for."""
    options = parse_arguments()
    if options.side:
        serve(options)
        return
    rows = [row for amp in options.amp for row in measure_precision(options, amp)]
    measure.report("steps", measure.machine_card(torch.device("cpu")), rows, _COLUMNS, options.save)


if __name__ == "__main__":
    main()

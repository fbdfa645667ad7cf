"""Images a second of a training step and of photo to label map, against transformers on the same weights and inputs.

    python -m benchmarks.throughput --mode train --batch-size 2 --against transformers
    python -m benchmarks.throughput --mode infer --against transformers

The step is ``train_step`` of train.py itself. The peer gets its own better setting: SDPA attention, fused AdamW, its
own memory layout. Before anything is timed, the first step's loss and gradient norm, or the label maps, are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import measure, peers
from data.classes import ID2LABEL
from segformer import VARIANTS, ImageProcessor, Segformer, Segmenter
from train import TrainConfig, amp_dtype, autocast, build_optimizer, train_step

_COLUMNS = ["variant", "size", "batch_size", "dtype", "compile", "images_per_second", "ms", "peer_ms", "ratio"]
_MEMORY_SHARE = 0.6  # of the free memory: a row that is expected to need more is predicted, not tried
_PHOTO = (683, 512)  # width and height of a common ADE20K photo


def parse_arguments() -> argparse.Namespace:
    """What to measure; options with several values measure every combination."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=("train", "infer"), default="train")
    parser.add_argument("--variant", nargs="+", choices=tuple(VARIANTS), default=["b0"])
    parser.add_argument("--size", nargs="+", type=int, default=[512], help="side of the model's input in pixels")
    parser.add_argument("--batch-size", nargs="+", type=int, default=[2], help="of a training step; infer takes one")
    parser.add_argument("--amp", nargs="+", choices=("off", "bf16", "fp16"), default=["off"])
    parser.add_argument("--compile", action="store_true", help="torch.compile both sides")
    parser.add_argument("--against", choices=("transformers",), help="measure this peer in the same run")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--memory", action="store_true", help="also the peak memory, each side in a fresh process")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save", metavar="NAME", help="keep the rows as results/throughput-NAME.json")
    parser.add_argument("--only-memory-of", choices=("ours", "peer"), help=argparse.SUPPRESS)
    return parser.parse_args()


class Case:
    """One row of the table: a model, its peer with the same weights, and the same work for both."""

    def __init__(self, options: argparse.Namespace, variant: str, size: int, batch_size: int, amp: str) -> None:
        self.options = options
        self.facts = {"mode": options.mode, "variant": variant, "size": size, "amp": amp, "compile": options.compile}
        self.facts["batch_size"] = batch_size if options.mode == "train" else 1
        self.size = size
        self.device = torch.device(options.device)
        # No dropout and no drop path: the two sides draw differently, and what is compared must be equal.
        self.config = TrainConfig(amp=amp, per_device_train_batch_size=batch_size)
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
        sides = {"ours": self.ours()}
        if self.options.against:
            sides["peer"] = self.peer()
            self.facts |= self.compare(sides["ours"](), sides["peer"]())
        seconds = measure.alternate(sides, self.device, self.options.repeats)
        row = {**self.facts, "dtype": str(amp_dtype(self.config.amp, self.device) or torch.float32).split(".")[1]}
        median = statistics.median(seconds["ours"])
        row |= {"images_per_second": row["batch_size"] / median, **measure.spread_ms(seconds["ours"])}
        row |= self.count_flops(median)
        if "peer" in seconds:
            row |= {f"peer_{name}": value for name, value in measure.spread_ms(seconds["peer"]).items()}
            row["ratio"] = statistics.median(seconds["peer"]) / median
        return row

    def count_flops(self, seconds: float) -> dict[str, float]:
        """The work of one run in GFLOP (multiply and add counted apart), and its rate as a share of a product's."""
        dtype = amp_dtype(self.config.amp, self.device) or torch.float32
        images = self.batch["images"][: self.facts["batch_size"]]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.model(images)
        passes = 3 if self.options.mode == "train" else 1  # backward is two products for each of forward's
        gflop = passes * counter.get_total_flops() / 1e9
        share = gflop / seconds / measure.matmul_gflop_per_second(self.device, dtype)
        return {"gflop": gflop, "share_of_matmul_rate": share}

    def ours(self) -> Callable[[], Any]:
        """Our side of the work, ready to be run again and again."""
        if self.options.mode == "infer":
            segmenter = Segmenter(self.model, ImageProcessor(size=(self.size, self.size)), self.device)
            if self.options.compile:
                self.model.compile()
            return lambda: self._our_label_map(segmenter)
        model = self.model.train()
        if self.options.compile:
            model.compile()
        optimizer = build_optimizer(model, self.config)
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.config.amp == "fp16")
        return lambda: train_step(model, optimizer, scaler, self.batch, self.config)

    def _our_label_map(self, segmenter: Segmenter) -> Any:
        with autocast(self.config, self.device):
            return segmenter.label_map(_photo())

    def peer(self) -> Callable[[], Any]:
        """The same work by transformers, from the same weights."""
        model = peers.transformers_model(self.folder.name, self.device)
        if self.options.compile:
            model.compile()
        return self._peer_inference(model) if self.options.mode == "infer" else self._peer_step(model.train())

    def _peer_step(self, model: Any) -> Callable[[], Any]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.config.learning_rate, weight_decay=0.0, fused=True)

        def step() -> tuple[Tensor, Tensor]:
            optimizer.zero_grad(set_to_none=True)
            with autocast(self.config, self.device):
                loss = model(pixel_values=self.batch["images"], labels=self.batch["labels"]).loss
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), self.config.max_grad_norm)
            optimizer.step()
            return loss.detach(), norm

        return step

    def _peer_inference(self, model: Any) -> Callable[[], Any]:
        processor = peers.transformers_processor(self.folder.name)
        model.eval()

        def infer() -> Any:
            photo = _photo()
            inputs = processor(images=photo, return_tensors="pt").to(self.device)
            with torch.inference_mode(), autocast(self.config, self.device):
                outputs = model(**inputs)
            return processor.post_process_semantic_segmentation(outputs, target_sizes=[photo.size[::-1]])[0].cpu()

        return infer

    def compare(self, ours: Any, peers: Any) -> dict[str, float]:
        """How far the two sides' first results are apart; stops the benchmark when that is too far."""
        if self.options.mode == "infer":
            agreement = float(np.mean(ours == peers.numpy()))
            self._require(agreement >= (0.9999 if self.config.amp == "off" else 0.98), f"agreement {agreement}")
            return {"pixel_agreement": agreement}
        differences = {
            name: abs(float(our) / float(peer) - 1.0)
            for name, our, peer in zip(("loss_difference", "grad_norm_difference"), ours, peers, strict=True)
        }
        # In bfloat16 three digits are all there are.
        self._require(max(differences.values()) < (1e-4 if self.config.amp == "off" else 3e-2), str(differences))
        return differences

    def _require(self, equal: bool, measured: str) -> None:
        if not equal:
            raise SystemExit(f"{self.facts}: the two sides do not give the same result ({measured}); nothing was timed")


def _photo() -> Image.Image:
    """A photo-like picture, the same each time: smooth, so that its label map has regions."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(_PHOTO, Image.Resampling.BICUBIC)


def peak_memory(case: Case, side: str) -> float | None:
    """The peak memory of one side, from a process that has run nothing else."""
    words = ["--mode", case.facts["mode"], "--variant", case.facts["variant"], "--size", str(case.size)]
    words += ["--batch-size", str(case.facts["batch_size"]), "--amp", case.facts["amp"], "--only-memory-of", side]
    words += ["--device", case.options.device, *(["--compile"] if case.options.compile else [])]
    return measure.run_alone("throughput", words)["peak_memory_mib"]


def predict(rows: list[dict[str, Any]], variant: str, size: int, batch_size: int, amp: str) -> dict[str, Any] | None:
    """A row from the largest one measured with these settings, grown with the pixels; None if there is none."""
    like = [row for row in rows if (row["variant"], row["amp"]) == (variant, amp) and not row["predicted"]]
    if not like:
        return None
    base = max(like, key=lambda row: row["batch_size"] * row["size"] ** 2)
    growth = batch_size * size**2 / (base["batch_size"] * base["size"] ** 2)
    row = {name: base[name] for name in ("mode", "variant", "amp", "compile", "dtype", "ratio") if name in base}
    row |= {"size": size, "batch_size": batch_size, "predicted": True}
    grows = ("ms", "peer_ms", "gflop", "peak_memory_mib", "peer_peak_memory_mib")
    row |= {name: base[name] * growth for name in grows if base.get(name) is not None}
    row["images_per_second"] = 1e3 * batch_size / row["ms"]
    row["needed_mib"] = max(row.get("peer_peak_memory_mib", 0.0), row.get("peak_memory_mib", 0.0))
    return row


def main() -> None:
    """Measure every combination that was asked for."""
    options = parse_arguments()
    cases = product(options.variant, options.size, options.batch_size, options.amp)
    if options.only_memory_of:
        case = Case(options, *next(cases))
        run = case.ours() if options.only_memory_of == "ours" else case.peer()
        print(json.dumps({"peak_memory_mib": measure.peak_memory_mib(run, case.device)}))
        return
    rows: list[dict[str, Any]] = []
    columns = list(_COLUMNS)
    for values in cases:
        predicted = predict(rows, *values) if options.memory else None
        if predicted and predicted["needed_mib"] > _MEMORY_SHARE * measure.free_memory_mib(options.device):
            rows.append(predicted)
            continue
        case = Case(options, *values)
        row = {**case.run(), "predicted": False}
        if options.memory:
            row["peak_memory_mib"] = peak_memory(case, "ours")
            if options.against:
                row["peer_peak_memory_mib"] = peak_memory(case, "peer")
                row["memory_ratio"] = row["peak_memory_mib"] / row["peer_peak_memory_mib"]
        rows.append(row)
    columns += ["predicted"] if any(row["predicted"] for row in rows) else []
    columns += [name for name in ("peak_memory_mib", "peer_peak_memory_mib", "memory_ratio") if name in rows[0]]
    measure.report("throughput", measure.machine_card(torch.device(options.device)), rows, columns, options.save)


if __name__ == "__main__":
    main()

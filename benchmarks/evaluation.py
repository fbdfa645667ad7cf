"""Streaming evaluation against the guide's: seconds and peak memory as the number of images grows.

    python -m benchmarks.evaluation --images 16 64 --memory --against guide

The guide's way keeps the logits of every image, enlarges all of them at once and scores image by image with the formula
of ``evaluate``; ours is ``evaluate`` of train.py. Both run the forward passes; the mean IoU of both must be the same.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks import measure, peers
from benchmarks.worker import alone
from data import SceneParse150
from data.batches import Samples, for_evaluation
from data.classes import ID2LABEL
from segformer import VARIANTS, ImageProcessor, Segformer
from train import configure, evaluate

_COLUMNS = ["images", "size", "seconds", "peer_seconds", "ratio", "peak_memory_mib", "peer_peak_memory_mib"]


class Prepared(Samples):
    """Samples that are tensors already, so that decoding photos is no part of what is timed."""

    def __init__(self, count: int, size: int) -> None:
        scenes = SceneParse150("toy", "validation")
        super().__init__(scenes, for_evaluation(ImageProcessor(size=(size, size)), "processed"))
        samples = [super(Prepared, self).__getitem__((0, row % len(scenes))) for row in range(count)]
        self.images, self.labels = (torch.stack([sample[name] for sample in samples]) for name in ("images", "labels"))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]:
        return {"images": self.images[place[1]], "labels": self.labels[place[1]]}


def sides(options: argparse.Namespace, count: int) -> dict[str, Callable[[], float]]:
    """Both ways of scoring the same images, each returning the mean IoU."""
    torch.manual_seed(0)
    model = Segformer(VARIANTS["b0"](id2label=ID2LABEL))
    torch.nn.init.normal_(model.decoder.classifier.weight)  # so that predictions are not all one class
    samples, device = Prepared(count, options.size), torch.device("cpu")
    config = configure("guide", per_device_eval_batch_size=options.batch_size, device="cpu", amp="off")
    ways: dict[str, Callable[[], float]] = {"ours": lambda: evaluate(model, samples, config, device)["eval_mean_iou"]}
    if options.against:
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            peer = peers.transformers_model(folder, device)
        ways["peer"] = lambda: peers.guide_evaluation(peer, samples.images, samples.labels, options.batch_size)
    return ways


def row(options: argparse.Namespace, count: int) -> dict[str, Any]:
    """Measure one number of images."""
    ways = sides(options, count)
    scores = {name: way() for name, way in ways.items()}
    if len({round(score, 6) for score in scores.values()}) > 1:
        raise SystemExit(f"the two ways do not give the same mean IoU ({scores}); nothing was timed")
    seconds = measure.alternate(ways, torch.device("cpu"), options.repeats)
    result: dict[str, Any] = {"images": count, "size": options.size, "batch_size": options.batch_size}
    result |= {"mean_iou": scores["ours"], "seconds": statistics.median(seconds["ours"])}
    if "peer" in seconds:
        result["peer_seconds"] = statistics.median(seconds["peer"])
        result["ratio"] = result["peer_seconds"] / result["seconds"]
    if options.memory:
        for name, prefix in (("ours", ""), ("peer", "peer_"))[: len(ways)]:
            result[f"{prefix}peak_memory_mib"] = alone(partial(_peak, options, count, name))
    return result


def _peak(options: argparse.Namespace, count: int, side: str) -> float | None:
    """The peak memory of one side, in this process."""
    return measure.peak_memory_mib(sides(options, count)[side], torch.device("cpu"))


def main() -> None:
    """Measure every number of images that was asked for."""
    parser = measure.flags(__doc__, "evaluation", repeats=3, on_device=False)
    parser.add_argument("--images", nargs="+", type=int, default=[16, 64])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--against", choices=("guide",), help="measure the guide's way in the same run")
    parser.add_argument("--memory", action="store_true", help="also the peak memory, each way in a fresh process")
    options = parser.parse_args()
    rows = [row(options, count) for count in options.images]
    columns = _COLUMNS if options.memory else _COLUMNS[:5]
    measure.report("evaluation", measure.machine_card(torch.device("cpu")), rows, columns, options.save)


if __name__ == "__main__":
    main()

"""Images a second of the data path alone: decode, jitter, resize, normalise, with no model behind it.

    python -m benchmarks.loader --against datasets
    python -m benchmarks.loader --dataset path/to/shards --workers 0 2

The peer is what the guide runs: ``datasets``, torchvision's ColorJitter and transformers' image processor (PIL). Both
sides draw the same jitter, and their tensors are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure, peers
from data import SceneParse150
from data.sceneparse import find_shards
from data.transforms import ColorJitter, mix
from segformer import ImageProcessor
from train import Samples, build_loader, configure

_COLUMNS = ["dataset", "rows", "workers", "images_per_second", "ms_per_image", "peer_ms_per_image", "ratio"]
_SEED = 42


def our_rows(samples: Samples, rows: int, workers: int) -> Callable[[], list[Tensor]]:
    """Every row once through our path."""
    batches = [[(0, row) for row in range(first, min(first + 2, rows))] for first in range(0, rows, 2)]
    config = configure("guide", dataloader_num_workers=workers, device="cpu")
    loader = build_loader(samples, batches, config, torch.device("cpu"))
    return lambda: [images for batch in loader for images in batch["images"]]


def peer_rows(dataset: str, split: str, rows: int, cache: str) -> Callable[[], list[Tensor]]:
    """The same rows as the guide prepares them."""
    from datasets import load_dataset
    from torchvision.transforms import ColorJitter as TorchvisionJitter

    files = [str(path) for path in find_shards(dataset, split)]
    table = load_dataset("parquet", data_files={split: files}, split=split, cache_dir=cache)
    ImageProcessor().save_pretrained(cache)
    processor, jitter = peers.transformers_processor(cache), TorchvisionJitter(0.25, 0.25, 0.25, 0.1)

    def prepare(row: int) -> Tensor:
        example = table[row]
        torch.manual_seed(mix(_SEED, 0, row))
        image = jitter(example["image"].convert("RGB"))
        inputs = processor(image, example["annotation"], return_tensors="pt")
        return inputs["pixel_values"][0]

    return lambda: [prepare(row) for row in range(rows)]


def main() -> None:
    """Measure every number of workers that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="toy", help="folder of parquet shards, or toy")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--rows", type=int, default=40, help="rows of one pass, at most")
    parser.add_argument("--workers", nargs="+", type=int, default=[0], help="the peer always runs in this process")
    parser.add_argument("--against", choices=("datasets",), help="measure the guide's path in the same run")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--save", metavar="NAME", help="keep the rows as results/loader-NAME.json")
    options = parser.parse_args()
    samples = Samples(SceneParse150(options.dataset, options.split), ImageProcessor(), ColorJitter(), _SEED)
    count = min(options.rows, len(samples))
    name = options.dataset if options.dataset == "toy" else Path(options.dataset).name
    results = []
    with tempfile.TemporaryDirectory() as cache:
        for workers in options.workers:
            ways = {"ours": our_rows(samples, count, workers)}
            if options.against:
                ways["peer"] = peer_rows(options.dataset, options.split, count, cache)
                for ours, theirs in zip(ways["ours"](), ways["peer"](), strict=True):
                    if not torch.equal(ours, theirs):
                        raise SystemExit("the two paths do not give the same pixels; nothing was timed")
            seconds = measure.alternate(ways, torch.device("cpu"), options.repeats)
            medians = {side: statistics.median(values) / count for side, values in seconds.items()}
            row: dict[str, Any] = {"dataset": name, "rows": count, "workers": workers}
            row |= {"images_per_second": 1 / medians["ours"], "ms_per_image": 1e3 * medians["ours"]}
            if "peer" in medians:
                row |= {"peer_ms_per_image": 1e3 * medians["peer"], "ratio": medians["peer"] / medians["ours"]}
            results.append(row)
    measure.report("loader", measure.machine_card(torch.device("cpu")), results, _COLUMNS, options.save)


if __name__ == "__main__":
    main()

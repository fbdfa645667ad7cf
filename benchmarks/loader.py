"""Images a second of the data path alone: decode, jitter, resize, normalise, with no model behind it.

    python -m benchmarks.loader --against datasets
    python -m benchmarks.loader --dataset path/to/shards --workers 0 2

The peer is what the guide runs: ``datasets``, torchvision's ColorJitter and transformers' image processor (PIL). Both
sides draw the same jitter, and their tensors are compared before anything is timed. The second path, on-device, is what
workers do with --augment-on-device: decode and resize, no more. The stages are timed in turn, in one process.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks import measure, peers
from data import SceneParse150
from data.augmentation.jitter import ColorJitter, mix, sample_generator
from data.batches import Resized, Samples, Unprocessed
from data.sources.choice import open_rows
from segformer import ImageProcessor
from train import build_loader, configure

_COLUMNS = ["path", "workers", "images_per_second", "ms_per_image", "mib_per_image", "peer_ms_per_image", "ratio"]
_SEED = 42
_CPU = torch.device("cpu")


def our_rows(samples: Samples, rows: int, workers: int) -> Callable[[], list[dict[str, Tensor]]]:
    """Every row once through our path, in batches of two."""
    batches = [[(0, row) for row in range(first, min(first + 2, rows))] for first in range(0, rows, 2)]
    config = configure("guide", dataloader_num_workers=workers, device="cpu")
    loader = build_loader(samples, batches, config, _CPU)
    return lambda: [{name: batch[name] for name in ("images", "labels")} for batch in loader]


def peer_rows(dataset: str, split: str, rows: int, cache: str) -> Callable[[], list[Tensor]]:
    """The same rows as the guide prepares them."""
    from datasets import load_dataset
    from torchvision.transforms import ColorJitter as TorchvisionJitter

    files = sorted(str(rows.path) for rows in open_rows(dataset, split))  # type: ignore[attr-defined]
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


def stages(dataset: SceneParse150, rows: int) -> dict[str, Callable[[], Any]]:
    """Each stage of the path alone, over all rows, on what the stage before it gives."""
    processor, jitter = ImageProcessor(), ColorJitter()
    pairs = [dataset[row] for row in range(rows)]
    size = processor.size[::-1]
    small = [image.resize(size, Image.Resampling.BILINEAR) for image, _ in pairs]
    return {
        "read": lambda: [dataset._row(row) for row in range(rows)],
        "read and decode": lambda: [dataset[row] for row in range(rows)],
        "jitter": lambda: [jitter(image, sample_generator(_SEED, 0, row)) for row, (image, _) in enumerate(pairs)],
        "resize photo": lambda: [image.resize(size, Image.Resampling.BILINEAR) for image, _ in pairs],
        "normalise": lambda: [processor.image_to_tensor(image) for image in small],
        "labels": lambda: [processor.labels_to_tensor(label_map) for _, label_map in pairs if label_map],
    }


def measure_stages(dataset: SceneParse150, rows: int, repeats: int) -> dict[str, float]:
    """Milliseconds of each stage for one image."""
    seconds = measure.alternate(stages(dataset, rows), _CPU, repeats)
    return {name: 1e3 * statistics.median(values) / rows for name, values in seconds.items()}


def measure_path(
    path: str, samples: Samples, count: int, workers: int, peer: Callable[[], list[Tensor]] | None, repeats: int
) -> dict[str, Any]:
    """Images a second of one path, beside the peer's; both give the same pixels, or nothing is timed."""
    ours = our_rows(samples, count, workers)
    batches = ours()
    if peer and path == "as the guide":
        for mine, theirs in zip((image for batch in batches for image in batch["images"]), peer(), strict=True):
            if not torch.equal(mine, theirs):
                raise SystemExit("the two paths do not give the same pixels; nothing was timed")
    timed = measure.side_by_side({"ours": ours} | ({"peer": peer} if peer else {}), _CPU, repeats, per=count)
    row: dict[str, Any] = {"path": path, "rows": count, "workers": workers}
    row |= {"images_per_second": 1e3 / timed["ms"], "ms_per_image": timed["ms"]}
    row["mib_per_image"] = sum(values.nbytes for batch in batches for values in batch.values()) / count / 2**20
    return row | ({"peer_ms_per_image": timed["peer_ms"], "ratio": timed["ratio"]} if peer else {})


def main() -> None:
    """Measure both paths with every number of workers that was asked for, then the stages."""
    parser = measure.flags(__doc__, "loader", repeats=7, on_device=False)
    parser.add_argument("--dataset", default="toy", help="folder of parquet shards, or toy")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--rows", type=int, default=40, help="rows of one pass, at most")
    parser.add_argument("--workers", nargs="+", type=int, default=[0], help="the peer always runs in this process")
    parser.add_argument("--against", choices=("datasets",), help="measure the guide's path in the same run")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a core's worth; workers have one thread each too
    dataset = SceneParse150(options.dataset, options.split)
    count = min(options.rows, len(dataset))
    paths = {
        "as the guide": Samples(dataset, Resized(ImageProcessor(), ColorJitter(), _SEED)),
        "on-device": Samples(dataset, Unprocessed(ImageProcessor())),
    }
    with tempfile.TemporaryDirectory() as cache:
        peer = peer_rows(options.dataset, options.split, count, cache) if options.against else None
        results = [
            measure_path(path, samples, count, workers, peer, options.repeats)
            for workers in options.workers
            for path, samples in paths.items()
        ]
    sizes = [dataset[row][0].size for row in range(count)]
    card = measure.machine_card(_CPU) | {
        "dataset": options.dataset if options.dataset == "toy" else Path(options.dataset).name,
        "median_megapixels": float(np.median([width * height for width, height in sizes])) / 1e6,
    }
    results[0]["stages_ms"] = measure_stages(dataset, count, options.repeats)
    print("  ".join(f"{stage} {ms:.2f} ms" for stage, ms in results[0]["stages_ms"].items()))
    measure.report("loader", card, results, _COLUMNS, options.save)


if __name__ == "__main__":
    main()

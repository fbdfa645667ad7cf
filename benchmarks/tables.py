"""Write the committed measurements into the pages: ``python -m benchmarks.tables``.

``<!-- results/NAME.json: column, column -->`` and ``<!-- end -->`` mark where a table belongs and which columns it has.
A test checks that what stands between them is what the files say.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS

ROOT = Path(__file__).parent.parent
PAGES = tuple(
    ROOT / page for page in ("README.md", "README.ko.md", "docs/speed.md", "docs/speed.ko.md", "benchmarks/README.md")
)
_PLACE = re.compile(r"(<!-- results/(?P<name>[\w-]+)\.json: (?P<columns>[\w, ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_HEADINGS = {
    "ms": "ours, ms",
    "peer_ms": "peer, ms",
    "seconds": "ours, s",
    "peer_seconds": "peer, s",
    "ratio": "times as fast",
    "minutes": "ours, minutes",
    "peer_minutes": "peer, minutes",
    "mean_iou": "ours, mean IoU",
    "peer_mean_iou": "peer, mean IoU",
    "eval_loss": "ours, loss",
    "peer_eval_loss": "peer, loss",
    "peer_images_per_second": "peer, images/s",
    "same_weights": "same bits",
    "smp_ms": "smp, ms",
    "smp_ratio": "times as fast as smp",
    "smp_peak_memory_mib": "smp, MiB",
    "smp_memory_ratio": "share of smp's memory",
    "ms_per_image": "ours, ms/image",
    "peer_ms_per_image": "peer, ms/image",
    "mib_per_image": "MiB/image",
    "peak_memory_mib": "ours, MiB",
    "peer_peak_memory_mib": "peer, MiB",
    "memory_ratio": "share of the peer's memory",
    "images_per_second": "images/s",
    "share_of_matmul_rate": "share of matmul rate",
}


def render(page: str) -> str:
    """The page with every marked table as the results have it."""
    return _PLACE.sub(_table, page)


def _table(place: re.Match[str]) -> str:
    result = json.loads((RESULTS / f"{place['name']}.json").read_text(encoding="utf-8"))
    columns = [column.strip() for column in place["columns"].split(",")]
    lines = [_line(_HEADINGS.get(column, column.replace("_", " ")) for column in columns), "|---" * len(columns) + "|"]
    lines += [_line(_cell(column, row.get(column)) for column in columns) for row in result["rows"]]
    machine = result["machine"]
    smp = f"smp {machine['segmentation_models_pytorch']}, " if "segmentation_models_pytorch" in machine else ""
    measured = (
        f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}, "
        f"transformers {machine['transformers']}, {smp}{machine['date']}, commit {machine['commit']}"
    )
    return "".join([place[1], "\n".join(lines), f"\n\n{measured}\n", place[4]])


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if column.endswith("mean_iou"):
            return f"{value:.3f}"
        if 0 < abs(value) < 0.1:
            return f"{value:.2g}"
        return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)


def main() -> None:
    """Rewrite the pages in place."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for path in PAGES:
        path.write_text(render(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()

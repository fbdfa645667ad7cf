"""Write the committed measurements into the pages: ``python -m benchmarks.tables``.

``<!-- results/NAME.json: column, column -->`` and ``<!-- end -->`` mark where a table belongs and which columns it has.
Between ``<!-- machines -->`` and ``<!-- end -->`` all machines that ``python -m benchmarks`` has measured stand side by
side. A test checks that what stands there is what the files say.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS

ROOT = Path(__file__).parent.parent
PAGES = tuple(
    ROOT / page
    for page in (
        *("README.md", "README.ko.md", "benchmarks/README.md"),
        *("docs/speed.md", "docs/speed.ko.md", "docs/learning.md", "docs/learning.ko.md"),
        *("docs/export.md", "docs/export.ko.md"),
    )
)
_PLACE = re.compile(r"(<!-- results/(?P<name>[\w-]+)\.json: (?P<columns>[\w, ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_MACHINES = re.compile(r"(<!-- machines -->\n).*?(<!-- end -->)", re.DOTALL)
_TELLING = ("ms", "images_per_second", "difference")  # of a row beside those of other machines, the first that it has
_HEADINGS = {
    "ms": "ours, ms",
    "peer_ms": "peer, ms",
    "peers_memory": "the peer's memory",
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
    "paper_hours": "hours of the paper's 160,000 steps",
    "eval_images_per_second": "evaluation, images/s",
    "loss_cpu_off": "float32 on the CPU",
    "loss_off": "float32",
    "loss_bf16": "bfloat16",
    "loss_fp16": "float16",
    "scored_mean_iou": "mean IoU",
    "scored_boundary_iou": "boundary IoU",
    "scored_pixel_accuracy": "pixel accuracy",
    "largest_batch_size": "largest batch that fits",
    "peer_largest_batch_size": "the peer's",
    "best_batch_size": "batch that is as fast as any",
}
_OF_FORMS = {"ratio": "times as fast as the peer's", "torch_ratio": "times as fast as torch"}  # of a model


def render(page: str) -> str:
    """The page with every marked table as the results have it."""
    page = _MACHINES.sub(lambda place: f"{place[1]}{machines(machine_results())}\n{place[2]}", page)
    return _PLACE.sub(_table, page)


def machine_results() -> list[dict[str, Any]]:
    """What ``python -m benchmarks`` kept, machine by machine."""
    held = (json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json")))
    return [result for result in held if result["benchmark"] == "machine"]


def machines(results: Sequence[Mapping[str, Any]]) -> str:
    """The rows of all machines, a column for each: a time or rate, and how many times as fast as the peer that is."""
    if not results:
        return "No machine's results are kept yet."
    columns = [{row["row"]: row for row in result["rows"]} for result in results]
    names = dict.fromkeys(name for column in columns for name in column)
    lines = [table_line(["", *(result["machine"]["device"] for result in results)]), "|---" * (len(results) + 1) + "|"]
    return "\n".join(
        [*lines, *(table_line([name, *(_in_short(column.get(name, {})) for column in columns)]) for name in names)]
    )


def _in_short(row: Mapping[str, Any]) -> str:
    name = next((name for name in _TELLING if row.get(name) is not None), None)
    if name is None:
        return "failed" if "failed" in row else "-"
    times = f" ({cell('ratio', row['ratio'])} x)" if row.get("ratio") else ""
    return f"{cell(name, row[name])}{'' if name == 'difference' else ' ' + heading(name).removeprefix('ours, ')}{times}"


def _table(place: re.Match[str]) -> str:
    result = json.loads((RESULTS / f"{place['name']}.json").read_text(encoding="utf-8"))
    columns = [column.strip() for column in place["columns"].split(",")]
    known = _OF_FORMS if "form" in columns else {}
    headings = [known.get(column) or heading(column) for column in columns]
    own = [f"peer_{column}" not in columns for column in columns]  # of whom there is no other to tell apart
    headings = [text.removeprefix("ours, ") if alone else text for text, alone in zip(headings, own, strict=True)]
    lines = [table_line(headings), "|---" * len(columns) + "|"]
    lines += [table_line(cell(column, row.get(column)) for column in columns) for row in result["rows"]]
    machine = result["machine"]
    smp = f"smp {machine['segmentation_models_pytorch']}, " if "segmentation_models_pytorch" in machine else ""
    measured = (
        f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}, "
        f"transformers {machine['transformers']}, {smp}{machine['date']}, commit {machine['commit']}"
    )
    return "".join([place[1], "\n".join(lines), f"\n\n{measured}\n", place[4]])


def table_line(cells: Iterable[str]) -> str:
    """A line of a table in Markdown."""
    return "| " + " | ".join(cells) + " |"


def heading(column: str) -> str:
    """What a column is called."""
    return _HEADINGS.get(column, column.replace("_", " "))


def cell(column: str, value: Any) -> str:
    """A value as it stands in a table."""
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

"""What is shown of a machine: a page in Markdown and a picture, from the rows that ``python -m benchmarks`` kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.tables import cell, heading, table_line

Entry = Mapping[str, Any]

# The columns of every group of rows, those that a row of it has.
_COLUMNS = {
    "step": [
        *("ms", "peer_ms", "ratio", "images_per_second", "peak_memory_mib", "peer_peak_memory_mib", "memory_ratio"),
        *("share_of_matmul_rate", "paper_hours"),
    ],
    "photo": ["ms", "peer_ms", "ratio", "images_per_second", "pixel_agreement"],
    "loss": ["ms", "peer_ms", "ratio", "difference"],
    "run": ["batch_size", "images_per_second", "data_wait_share", "eval_images_per_second", "paper_hours"],
    "data": ["workers", "images_per_second", "ms_per_image", "mib_per_image"],
    "precision": ["loss_cpu_off", "loss_off", "loss_bf16", "loss_fp16", "difference"],
    "batch": ["best_batch_size", "images_per_second", "largest_batch_size", "peer_largest_batch_size"],
}
_TITLES = {
    "step": "Training step",
    "photo": "Photos to label maps",
    "loss": "Loss and its gradient",
    "run": "`train.py`, from files to weights",
    "data": "Data alone",
    "precision": "Loss of a run of 100 steps, the mean of its last twenty",
    "batch": "Batches",
}
_LOWER_IS_BETTER = ("memory_ratio", "difference")


def is_measured(row: Entry) -> bool:
    """Whether a row came to a result."""
    return not ("failed" in row or "skipped" in row)


def told(row: Entry) -> str:
    """A row in a few words."""
    if not is_measured(row):
        return f"failed: {row['failed']}" if "failed" in row else f"skipped: {row['skipped']}"
    columns = [name for name in _COLUMNS.get(row["group"], []) if row.get(name) is not None]
    return ", ".join(f"{heading(name)} {cell(name, row[name])}" for name in columns[:4]) or "measured"


def text(result: Mapping[str, Any], name: str) -> str:
    """The page of a machine, whose picture is NAME.svg beside it."""
    machine, rows = result["machine"], result["rows"]
    card = ", ".join(f"{key} {value}" for key, value in machine.items() if key != "device" and value is not None)
    parts = [f"# {machine['device']}", card, _goals(rows), f"![times as fast as the peer]({name}.svg)"]
    for group, title in _TITLES.items():
        of_group = [row for row in rows if row["group"] == group and is_measured(row)]
        columns = [column for column in _COLUMNS[group] if any(row.get(column) is not None for row in of_group)]
        if of_group:
            parts.append(f"## {title}\n\n{_table(of_group, columns)}")
    for row in rows:
        if row["group"] == "profile" and is_measured(row):
            head = f"## Where the {row['busy_ms']:.1f} ms of a {row['variant'].upper()} step of {row['batch_size']} go"
            columns = ["operation", "calls", "ms", "share"]
            parts.append(f"{head}\n\n{_lines(columns, [[each[column] for column in columns] for each in row['top']])}")
    missing = [f"- {row['row']}: {told(row)}" for row in rows if not is_measured(row)]
    if missing:
        parts.append("## Not measured\n\n" + "\n".join(missing))
    return "\n\n".join(filter(None, parts)) + "\n"


def _goals(rows: Sequence[Entry]) -> str:
    """What was to be reached, and whether it was."""
    lines = []
    for row in rows:
        for column, at_least, aim in row.get("goals", ()):
            value = row.get(column)
            enough = None if value is None else (value <= at_least if column in _LOWER_IS_BETTER else value >= at_least)
            lines.append([row["row"], heading(column), at_least, aim or None, value, enough])
    return _lines(["row", "what", "at least", "aim", "measured", "reached"], lines) if lines else ""


def _table(rows: Sequence[Entry], columns: Sequence[str]) -> str:
    return _lines(["", *columns], [[row["row"], *(row.get(column) for column in columns)] for row in rows])


def _lines(columns: Sequence[str], values: Sequence[Sequence[Any]]) -> str:
    lines = [table_line(heading(column) for column in columns), "|---" * len(columns) + "|"]
    named = (zip(columns, each, strict=True) for each in values)
    return "\n".join([*lines, *(table_line(cell(column, value) for column, value in each) for each in named)])


# ---------------------------------------------------------------------------------------------------------- the picture

_WIDTH, _NAMES, _BAR, _GAP = 760, 260, 18, 8
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#222}.bar{fill:#3465a4}.slow{fill:#c17d11}.one{stroke:#888}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}}"
)


def picture(result: Mapping[str, Any]) -> str:
    """Bars of how many times as fast as its peer each row is, as SVG; a line stands at 1."""
    rows = [row for row in result["rows"] if row.get("ratio")]
    most = max([1.5, *(row["ratio"] for row in rows)])
    scale = (_WIDTH - _NAMES - 60) / most
    parts = []
    for number, row in enumerate(rows):
        top, width = 40 + number * (_BAR + _GAP), row["ratio"] * scale
        kind, middle = "bar" if row["ratio"] >= 1 else "bar slow", top + _BAR - 5
        parts += [
            f'<text x="{_NAMES - 8}" y="{middle}" text-anchor="end">{escape(row["row"])}</text>',
            f'<rect class="{kind}" x="{_NAMES}" y="{top}" width="{width:.1f}" height="{_BAR}"/>',
            f'<text x="{_NAMES + width + 6:.1f}" y="{middle}">{row["ratio"]:.2f}</text>',
        ]
    height, one = 48 + len(rows) * (_BAR + _GAP), _NAMES + scale
    title = escape(f"Times as fast as the peer, {result['machine']['device']}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">'
        f"<title>{title}</title><style>{_STYLE}</style>\n"
        f'<text x="8" y="22" style="font-weight:bold">{title}</text>\n'
        + "\n".join(parts)
        + f'\n<line class="one" x1="{one:.1f}" x2="{one:.1f}" y1="34" y2="{height - 8}"/>\n</svg>\n'
    )

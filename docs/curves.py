"""Draw how the runs of ``benchmarks.streets`` learn: mean IoU over minutes.

python docs/curves.py             writes curves.svg beside this file, from benchmarks/results/streets-camvid.json
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks/results/streets-camvid.json"
NAMES = {"own": "train.py --recipe own", "guide": "train.py --recipe guide", "trainer": "Trainer, the guide's settings"}
WIDTH, HEIGHT = 664, 330
LEFT, RIGHT, TOP, BOTTOM = 54, 648, 20, 284  # of the field in which curves are drawn
STYLE = """
svg{--ink:#1f2328;--faint:#59636e;--grid:#d1d9e0;--own:#bc4c00;--guide:#0969da;--trainer:#59636e}
@media (prefers-color-scheme:dark){svg{--ink:#f0f6fc;--faint:#9198a1;--grid:#3d444d;--own:#f0883e;--guide:#58a6ff;
--trainer:#9198a1}}
text{font:14px -apple-system,"Segoe UI",Roboto,Helvetica,Arial,"Liberation Sans","Noto Sans",sans-serif;
fill:var(--faint)}
.right{text-anchor:end}.middle{text-anchor:middle}.name{font-weight:600}.grid{stroke:var(--grid)}
.curve{fill:none;stroke-width:2.5;stroke-linejoin:round}.trainer{stroke-dasharray:7 5}
"""


def draw(rows: Sequence[Mapping[str, Any]]) -> str:
    """The picture as SVG; a curve for each row."""
    minutes = max(point["minutes"] for row in rows for point in row["curve"])
    best = max(point["mean_iou"] for row in rows for point in row["curve"])
    highest = -(-best // 0.1) / 10  # rounded up

    def place(point: Mapping[str, float]) -> tuple[float, float]:
        x = LEFT + (RIGHT - LEFT) * point["minutes"] / minutes
        return x, BOTTOM - (BOTTOM - TOP) * point["mean_iou"] / highest

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'role="img" aria-label="Mean IoU over minutes of training on CamVid">',
        f"<style>{STYLE}</style>",
        *_grid(minutes, highest),
        *(_curve(row["run"], [place(point) for point in row["curve"]]) for row in rows),
        *_legend(list(dict.fromkeys(row["run"] for row in rows))),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _grid(minutes: float, highest: float) -> Iterator[str]:
    for number in range(round(highest * 10) + 1):
        y = BOTTOM - (BOTTOM - TOP) * number / (highest * 10)
        yield f'<path class="grid" d="M{LEFT} {y:.1f}H{RIGHT}"/>'
        yield f'<text class="right" x="{LEFT - 8}" y="{y + 5:.1f}">{number / 10:.1f}</text>'
    step = next(step for step in (1, 2, 5, 10, 20, 60, 120, 240, 480) if minutes / step <= 8)
    for minute in range(0, round(minutes) + 1, step):
        x = LEFT + (RIGHT - LEFT) * minute / minutes
        yield f'<text class="middle" x="{x:.1f}" y="{BOTTOM + 20}">{minute}</text>'
    yield f'<text class="right" x="{RIGHT}" y="{BOTTOM + 40}">minutes</text>'


def _curve(run: str, places: Sequence[tuple[float, float]]) -> str:
    way = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    return f'<path class="curve {run}" stroke="var(--{run})" d="M{way}"/>'


def _legend(runs: Sequence[str]) -> Iterator[str]:
    for number, run in enumerate(runs):
        y = BOTTOM - 16 - 22 * (len(runs) - 1 - number)
        yield f'<path class="curve {run}" stroke="var(--{run})" d="M{RIGHT - 250} {y}h28"/>'
        yield f'<text x="{RIGHT - 214}" y="{y + 5}">{NAMES[run]}</text>'


if __name__ == "__main__":
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    path = DOCS / "curves.svg"
    path.write_text(draw(rows), encoding="utf-8")
    print(path)

"""The guide's run with nothing but its name: data and weights come from the Hub, here one on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import HubServer, Repository

ROOT = Path(__file__).parents[1]
CONVERSION = "25ce79d97e6d9d509ed12e17cb2eb89b0a83a2dc"  # the commit of the Hub's own conversion of nvidia/mit-b0


def _files(folder: Path, *names: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for name in names for path in folder.rglob(name)}


@pytest.mark.slow
@pytest.mark.real_data
def test_the_guide_runs_from_the_hub_and_again_without_it(
    real_shards: Path, encoder_checkpoint: Path, tmp_path: Path
) -> None:
    with HubServer() as hub:
        hub.repositories["datasets/zhoubolei/scene_parse_150"] = Repository(
            {"main": {"README.md": b"."}, "refs/convert/parquet": _files(real_shards, "*.parquet")}
        )
        # As on the Hub, the safetensors file is not on main.
        described = _files(encoder_checkpoint, "*.json")
        weights = _files(encoder_checkpoint, "*.safetensors")
        hub.repositories["nvidia/mit-b0"] = Repository({"main": described, CONVERSION: described | weights})
        places = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url, "NO_PROXY": "127.0.0.1,localhost"}
        scores = []
        for offline in ("0", "1"):
            hub.log.clear()
            done = subprocess.run(
                [sys.executable, str(ROOT / "train.py"), "--recipe", "guide", "--max-steps", "20"],
                env={**os.environ, **places, "HF_HUB_OFFLINE": offline},
                cwd=tmp_path,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            assert (offline == "1") == (hub.log == [])
            run = tmp_path / f"runs/guide-{int(offline) + 1}"
            scores.append(json.loads((run / "eval_results.json").read_text())["eval_mean_iou"])
        assert scores[0] == scores[1]

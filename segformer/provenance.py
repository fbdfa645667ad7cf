"""Where a result comes from: which weights, by name and hash, and which versions, machine and day made it."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("segformer-pytorch", "torch", "torchvision", "pillow", "numpy")


def provenance(checkpoint: str | None, weights: Path | None) -> dict[str, Any]:
    """What everything that is written says of its origin.

    ``checkpoint`` is the name that was asked for and ``weights`` the file that it led to, whose SHA-256, and in the
    Hub's cache its commit, tell it from others of that name.
    """
    told: dict[str, Any] = {"checkpoint": checkpoint}
    if weights is not None and weights.is_file():
        with weights.open("rb") as file:
            told["weights_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
        if weights.parent.parent.name == "snapshots":  # of the Hub's cache
            told["checkpoint_commit"] = weights.parent.name
    return {
        **told,
        "versions": {"python": platform.python_version(), **_versions()},
        "commit": _commit(),
        "machine": f"{platform.system()} {platform.machine()}",
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def told_of(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Provenance in two lines for people: which weights, and when, where and with which versions."""
    name, commit, digest = (
        str(provenance.get(key) or "") for key in ("checkpoint", "checkpoint_commit", "weights_sha256")
    )
    weights = [name, f"commit {commit[:12]}" if commit else "", f"SHA-256 {digest[:16]}" if digest else ""]
    versions = provenance.get("versions")
    listed = [f"{package} {version}" for package, version in versions.items()] if isinstance(versions, dict) else []
    commit = str(provenance.get("commit") or "")
    when = str(provenance.get("date") or "")[:16].replace("T", " ")
    made = [when, str(provenance.get("machine") or ""), *listed, f"commit {commit[:12]}" if commit else ""]
    told = {"Checkpoint": ", ".join(filter(None, weights)), "Made": ", ".join(filter(None, made))}
    return {name: text for name, text in told.items() if text}


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # run from a clone without installing it
            continue
    return {**found, "torch": str(torch.__version__)}


def _commit() -> str | None:
    """The commit of the clone that this code runs from, with a + where files differ from it."""
    folder = Path(__file__).parent

    def ask(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        if Path(ask("rev-parse", "--show-toplevel")) != folder.parent:  # installed into somebody else's repository
            return None
        return ask("rev-parse", "HEAD") + ("+" if ask("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None

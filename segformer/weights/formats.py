"""Named tensors out of a file: safetensors, a pickle of tensors, or the index of several of either.

A pickle is read by torch's safe loader alone. What that refuses to build, such as the settings that a training script
saved beside its weights, becomes an inert object of ours: nothing of it is imported, called or kept, and it is named.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from segformer.console import counted
from segformer.files import is_plain

INDEX_SUFFIX = ".index.json"
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".tar")

# What training scripts wrap their weights in, in the order in which one is taken where a file holds several.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "teacher", "student")
_DEEPEST = 4
_SHARD = re.compile(r"\w[\w.-]*\.(safetensors|bin)", re.ASCII)
_POINTER = b"version https://git-lfs.github.com/spec/"

logger = logging.getLogger(__name__)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The named tensors of a weights file, however deep its pickle wraps them, or of all the shards of an index.

    Raises ValueError, naming the file, for anything else, and FileNotFoundError for a shard that is not there.
    """
    if path.name.endswith(INDEX_SUFFIX):
        return _read_shards(path)
    if path.suffix == ".onnx":
        raise ValueError(f"{path} is an exported graph, not weights; infer.py runs it, and scores it by --annotations")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} is a {path.suffix or 'nameless kind of'} file; weights are {', '.join(SUFFIXES)}")
    with path.open("rb") as opened:
        if opened.read(len(_POINTER)) == _POINTER:
            raise ValueError(f"{path} is git-lfs's pointer to weights and not the weights; fetch them: git lfs pull")
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except Exception as error:  # the reader's own, and what torch raises for tensors that it does not have
            raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    strangers = _strangers(path)
    weights = _named_tensors(_unpickle(path, strangers), path)
    if strangers:
        logger.warning("%s: left unbuilt, as no tensor needs it: %s", path, ", ".join(strangers))
    return weights


def shard_names(index: Path) -> list[str]:
    """The files that an index names, all in its own folder. Raises ValueError for an index that names others."""
    return sorted(set(_weight_map(index).values()))


def _weight_map(index: Path) -> dict[str, str]:
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{index} is no JSON: {error}") from error
    shards = entries.get("weight_map") if isinstance(entries, dict) else None
    if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
        raise ValueError(f"{index} has no weight_map that says which file holds which tensor")
    for shard in shards.values():
        if not _SHARD.fullmatch(shard):
            raise ValueError(
                f"{index} names {shard[:200]!r} as a shard; shards are .safetensors or .bin in its own folder"
            )
    return shards


def _read_shards(index: Path) -> dict[str, Tensor]:
    promised = _weight_map(index)
    weights: dict[str, Tensor] = {}
    for shard in shard_names(index):
        path = index.with_name(shard)
        if not path.is_file():
            raise FileNotFoundError(f"{index} names the shard {shard}, which is not beside it")
        for name, tensor in read_tensors(path).items():
            if name in weights:
                raise ValueError(f"{index}: {shard} holds {name}, which an earlier shard holds too")
            weights[name] = tensor
    if lost := [name for name in promised if name not in weights]:
        raise ValueError(
            f"{index} promises {counted(len(lost), 'tensor')} that its shards do not hold, such as {lost[0]}"
        )
    return weights


class _Inert:
    """Stands for what the safe loader does not know, a class or a function: it takes anything and does nothing."""

    def __new__(cls, *_: Any) -> _Inert:
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None:
        """Keep nothing."""


def _strangers(path: Path) -> list[str]:
    """The classes and functions that a pickle asks for and the safe loader does not know, by name."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # no archive, or a damaged one: the loader itself says what it is
        return []


def _unpickle(path: Path, strangers: Sequence[str]) -> Any:
    try:
        with torch.serialization.safe_globals([(_Inert, name) for name in strangers]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises what it likes
        asked = re.search(r"GLOBAL (\S+) (?:was not|whose)", str(error))
        why = f"it asks for {asked[1]}" if asked else type(error).__name__
        raise ValueError(f"{path} is not a whole pickle of plain tensors ({why}): refused") from error


def _named_tensors(loaded: object, path: Path) -> dict[str, Tensor]:
    """The one mapping of named tensors in what a pickle held."""
    found = dict(_mappings(loaded))
    if not found:
        cure = "save a model's state_dict() and not the model" if isinstance(loaded, _Inert) else "refused"
        raise ValueError(f"{path} holds something other than named tensors ({_kind(loaded)}): {cure}")
    place = min(found, key=_rank)
    if others := [".".join(other) for other in found if other != place]:
        if _rank(place) == len(_WRAPPERS):
            raise ValueError(
                f"{path} holds several sets of weights ({', '.join(map('.'.join, found))}): save one alone"
            )
        logger.warning("%s: took %s, and left out %s", path, ".".join(place) or "what it holds", ", ".join(others))
    weights, strays = {}, []
    for name, value in found[place].items():
        if isinstance(value, Tensor) and not (isinstance(name, str) and is_plain(value)):
            raise ValueError(f"{path} holds a tensor without a name, or one that is not plain numbers: refused")
        if isinstance(value, Tensor):
            weights[name] = value
        else:
            strays.append(f"{name if isinstance(name, str) else _kind(name)} ({_kind(value)})")
    if strays:
        logger.info("%s: left out, as they are no tensors: %s", path, ", ".join(strays[:5]))
    return weights


def _mappings(loaded: object, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """The mappings that hold a network's weights, whose names have dots in them, and the keys that lead to each."""
    if not isinstance(loaded, Mapping) or len(place) > _DEEPEST:
        return
    if any(isinstance(name, str) and "." in name and isinstance(value, Tensor) for name, value in loaded.items()):
        yield place, loaded
        return
    for name, value in loaded.items():
        if isinstance(name, str):
            yield from _mappings(value, (*place, name))


def _rank(place: tuple[str, ...]) -> int:
    """Where the outermost wrapper stands in the order; after all of them where it is none."""
    return _WRAPPERS.index(place[0]) if place and place[0] in _WRAPPERS else len(_WRAPPERS)


def _kind(value: object) -> str:
    return "a pickled object" if isinstance(value, _Inert) else type(value).__name__

"""What strangers may hand over, damaged or forged: how each kind is made from a seed, and the door that it comes in by.

A kind is a function of a seeded generator and an empty folder that writes an input there and returns its door.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import json
import math
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from fuzzing import Open, Use, Witnessed, check_error, claim, emptied
from mutations import (
    Writes,
    blank_png,
    damaged,
    damaged_archive,
    forged_jpeg,
    forged_json,
    forged_png,
    hostile_pickle,
    json_bytes,
    strange_value,
    with_a_lie,
)
from PIL import Image
from run_folders import CLASS_NAMES, write_log, write_run

import train as training
from data import SceneParse150
from data.labels import LabelRule, read_label_names
from data.sources.choice import open_rows
from data.sources.prepared import PreparedRows, write_rows
from data.sources.shards import write_shard
from segformer import ImageProcessor, Segformer, SegformerConfig, Segmenter
from segformer.pages.report import build_report
from segformer.training.checkpoints import newest_checkpoint, read_training_state
from segformer.training.history import Log

_TAME = 1e6  # a weight beyond this may overflow, as damaged exponents do; what is below must give numbers


# ------------------------------------------------------------------------------------------------------------- bases


@cache
def base() -> Path:
    """The sound inputs that all others are made from, each made once by every process that tries some."""
    folder = emptied(Path(tempfile.gettempdir()) / "sound")
    torch.manual_seed(0)
    model = Segformer(_TINY)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(folder / "model")
    ImageProcessor(size=(32, 32)).save_pretrained(folder / "model")
    rows = list(_rows(12))
    write_shard(folder / "shards/plain.parquet", rows, ["halves"])
    table = pa.Table.from_pylist(rows)
    for name, options in _SHARDS.items():
        pq.write_table(table, folder / f"shards/{name}.parquet", **options)
    write_run(folder / "run", last_step=60, count=1)
    (folder / "run/config.json").write_bytes((folder / "model/config.json").read_bytes())
    return folder


_TINY = SegformerConfig(
    depths=(1, 1, 1, 1),
    hidden_sizes=(4, 4, 8, 8),
    num_attention_heads=(1, 1, 2, 2),
    decoder_hidden_size=4,
    num_labels=7,
)
_SHARDS: dict[str, dict[str, Any]] = {
    "snappy": {"row_group_size": 5},
    "zstd": {"compression": "zstd", "row_group_size": 1},  # more row groups than are kept: it is prepared
    "gzip": {"compression": "gzip", "data_page_version": "2.0", "write_page_index": True},
    "checked": {"write_page_checksum": True, "row_group_size": 4},
}


def _rows(count: int) -> Iterable[dict[str, Any]]:
    generator = np.random.default_rng(0)
    for number in range(count):
        labels = generator.integers(0, 151, (6, 8), np.uint8)
        pixels = Image.fromarray(np.stack([labels] * 3, axis=-1))
        files = {"image": encoded(pixels, "PNG"), "annotation": encoded(Image.fromarray(labels), "PNG")}
        row: dict[str, Any] = {name: {"bytes": file, "path": f"{number}.png"} for name, file in files.items()}
        yield {**row, "scene_category": 0}


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@cache
def photos() -> dict[str, bytes]:
    """One small picture in every form that Pillow writes, and in some ways of each."""
    generator = np.random.default_rng(1)
    picture = Image.fromarray(generator.integers(0, 256, (24, 40, 3), np.uint8)).resize((64, 48))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"
    held = {
        "turned.jpg": encoded(picture, "JPEG", exif=exif),
        "progressive.jpg": encoded(picture, "JPEG", progressive=True, subsampling=2),
        "grey.jpg": encoded(picture.convert("L"), "JPEG"),
        "inks.jpg": encoded(picture.convert("CMYK"), "JPEG"),
        "colour.png": encoded(picture, "PNG"),
        "palette.png": encoded(picture.convert("P"), "PNG", transparency=3),
        "deep.png": encoded(Image.fromarray(generator.integers(0, 2**16, (24, 40), np.uint16)), "PNG"),
        "lines.tif": encoded(picture, "TIFF", compression="tiff_lzw"),
        "moving.gif": encoded(picture, "GIF", save_all=True, append_images=[picture.rotate(90)] * 3),
    }
    for ending, form in Image.registered_extensions().items():
        if form not in ("JPEG", "PNG", "TIFF", "GIF", "PDF", "MPO") and form in Image.SAVE:
            with suppress(Exception):  # a form for which something is not installed
                held[f"picture{ending}"] = encoded(picture, form)
    return held


@cache
def label_maps() -> dict[str, bytes]:
    """One label map in the ways that it may be stored."""
    labels = np.random.default_rng(2).integers(0, 7, (48, 64), np.uint8)
    palette = Image.fromarray(labels)
    palette.putpalette(bytes(range(256)) * 3)
    return {
        "grey.png": encoded(Image.fromarray(labels), "PNG"),
        "palette.png": encoded(palette, "PNG", bits=4),
        "lines.tif": encoded(Image.fromarray(labels), "TIFF", compression="tiff_deflate"),
        "plain.bmp": encoded(Image.fromarray(labels), "BMP"),
    }


@cache
def trained() -> Path:
    """A run of two steps, as train.py leaves it, with its checkpoints, and the shards it was trained on."""
    folder = emptied(Path(tempfile.gettempdir()) / "trained")
    for split in ("train", "validation"):
        write_shard(folder / f"data/{split}/0000.parquet", _rows(4), ["halves"])
    with redirect_stdout(io.StringIO()):
        training.train(_settings(folder / "run", checkpoint=str(base() / "model")))
    return folder


def _settings(output_dir: Path, **more: Any) -> training.TrainConfig:
    return training.configure(
        "guide",
        dataset=str(output_dir.parent / "data"),
        split="train",
        eval_split="validation",
        device="cpu",
        max_steps=2,
        eval_steps=1,
        save_steps=1,
        output_dir=str(output_dir),
        **more,
    )


# ------------------------------------------------------------------------------------------------------------ models


def _model_folder(folder: Path) -> Path:
    return Path(shutil.copytree(base() / "model", folder / "model"))


def _open_model(source: Path) -> Open:
    def load() -> Use:
        segmenter = Segmenter.from_pretrained(source, device="cpu")

        def use() -> None:
            label_map = segmenter.label_map(np.zeros((24, 40, 3), np.uint8))
            claim(label_map.shape == (24, 40), f"a label map of {label_map.shape}")
            weights = [weight for weight in segmenter.model.state_dict().values() if weight.is_floating_point()]
            claim(all(bool(weight.isfinite().all()) for weight in weights), "weights that are no numbers, and no word")
            if max(float(weight.abs().max()) for weight in weights if weight.numel()) < _TAME:
                with torch.inference_mode():
                    logits = segmenter.model(segmenter.processor(Image.new("RGB", (32, 32), (200, 9, 70)))[0][None])
                claim(bool(logits.isfinite().all()), "tame weights that give logits that are no numbers, and no word")

        return use

    return load


def safetensors_bytes(rng: random.Random, folder: Path) -> Open:
    """A safetensors file with bytes flipped, cut, or moved, most of them in its header."""
    path = _model_folder(folder) / "model.safetensors"
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    first, last = rng.choice(((0, 8), (0, header), (8, header), (header, len(content)), (0, len(content))))
    path.write_bytes(damaged(rng, content, first, last))
    return _open_model(path.parent)


def safetensors_header(rng: random.Random, folder: Path) -> Open:
    """A safetensors file whose header is whole JSON that lies: offsets, dtypes, shapes, names, and its own length."""
    path = _model_folder(folder) / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    entries, tensors = json.loads(content[8 : 8 + length]), content[8 + length :]
    name = rng.choice([name for name in entries if name != "__metadata__"])
    lies: list[Callable[[], Any]] = [
        lambda: entries[name].update(dtype=rng.choice([*_DTYPES, "F99", "", 7])),
        lambda: entries[name].update(shape=rng.choice(([], [0], [2**63, 0], [2**40, 2**40], [-1], [1.5], "x", None))),
        lambda: entries[name].update(
            data_offsets=rng.choice(([0, 0], [4, 0], [0, 2**62], [-4, 0], [0], [2**63, 2**64]))
        ),
        lambda: entries.update({rng.choice(_NAMES): entries.pop(name)}),
        lambda: entries.update({rng.choice(_NAMES): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}),
        lambda: entries.update(__metadata__=strange_value(rng)),
    ]
    if rng.random() < 0.6:
        rng.choice(lies)()
        forged = json_bytes(entries)
    else:
        forged = forged_json(rng, entries)
    if rng.random() < 0.1:  # the same name twice
        forged = forged[:-1] + b"," + forged[1:]
    told = rng.choice((0, 1, 2**20, 2**31, 2**63, 2**64 - 1)) if rng.random() < 0.1 else len(forged)
    path.write_bytes(told.to_bytes(8, "little") + forged + tensors)
    return _open_model(path.parent)


_DTYPES = ["BOOL", "U8", "I8", "I32", "I64", "U64", "F8_E4M3", "F8_E8M0", "F4", "F16", "BF16", "F64", "C64"]
_LONG = "9" * 5000
_NAMES = [
    *("", "\x00", "\ud800", "a" * 100_000, "../../../etc/x", "weight", "__metadata__", "{i}.weight", "\n\x1b[31m.bias"),
    *("classifier.weight", "backbone.", "patch_embed0.proj.weight", "norm\u0663.weight", "norm01.weight", "norm9.bias"),
    *(f"segformer.encoder.layer_norm.{_LONG}.weight", f"encoder.block.{_LONG}.{_LONG}.layer_norm_1.bias"),
    *("segformer.encoder.layer_norm.\u0660.weight", "encoder.layer_norm.00.weight", "decode_head.conv_seg.weight"),
    *("segformer.encoder.layer_norm.7.weight", "stages.0.blocks.0.attention.k_proj.weight", "block1.0.attn.kv.weight"),
    *("segformer.encoder.block.0.0.attention.self.key.running_mean", "decode_head.classifier.running_var"),
]


def tensors(rng: random.Random, folder: Path) -> Open:
    """A whole safetensors file or pickle of wrong tensors: other shapes, dtypes, names, NaN and infinity."""
    model = _model_folder(folder)
    path = model / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    for _ in range(rng.choice((1, 1, 2))):
        _forge_tensor(rng, weights)
    path.unlink()
    source = model / rng.choice(("model.safetensors", "model.safetensors", "pytorch_model.bin", "alone.pth"))
    if source.suffix == ".safetensors":
        path.write_bytes(safetensors.torch.save({name: tensor.contiguous() for name, tensor in weights.items()}))
    else:
        torch.save(weights, source)
    if source.name == "alone.pth" and rng.random() < 0.5:
        (model / "config.json").unlink()
    are_real = all(tensor.is_floating_point() != ("num_batches" in name) for name, tensor in weights.items())

    def load() -> Use | None:
        use = _open_model(source if source.name == "alone.pth" else model)()
        claim(are_real, "weights that are whole or complex numbers, and no word")
        return use

    return load


def _forge_tensor(rng: random.Random, weights: dict[str, torch.Tensor]) -> None:
    name = rng.choice(list(weights))
    if rng.random() < 0.3:
        name = rng.choice([name for name in weights if any(part in name for part in ("self.", "batch_norm", "fier"))])
    tensor = weights[name]
    value = rng.choice((math.nan, math.inf, -math.inf, 1e30, -1.0, -1e-3, 0.0, 3e38))
    whole = [torch.bool, torch.uint8, torch.int32, torch.int64]
    kinds = [*whole, torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.float8_e4m3fn]
    action = rng.randrange(9)
    if action == 0:
        weights[name] = torch.full_like(tensor, value) if tensor.is_floating_point() else tensor * -(2**40)
    elif action == 1 and tensor.numel():
        weights[name] = tensor.clone()
        weights[name].view(-1)[rng.randrange(tensor.numel())] = value if tensor.is_floating_point() else 2**62
    elif action == 2:
        kind = rng.choice(kinds)
        weights[name] = tensor.to(kind)
        if ".self.key." in name and rng.random() < 0.7:
            value_name = name.replace(".key.", ".value.")
            weights[value_name] = weights[value_name].to(kind)
    elif action == 3:
        shape: Any = rng.choice(((), (0,), (1, *tensor.shape), (*tensor.shape, 1), (2**40, 0), (0, 2**40), (7,)))
        weights[name] = torch.zeros(shape)
        if ".self." in name:
            weights[name.replace(".key.", ".value.")] = torch.zeros(shape)
    elif action == 4:
        del weights[name]
    elif action == 5:
        weights[rng.choice(_NAMES).replace("\ud800", "")] = weights.pop(name).clone()
    elif action == 6:
        weights[rng.choice(_NAMES).replace("\ud800", "")] = tensor.clone()
    elif action == 7:
        for each in [each for each in weights if each.startswith("decode_head")]:
            del weights[each]
    elif tensor.is_floating_point():
        weights[name] = tensor.double() * 10.0 ** rng.choice((-300, -40, 30, 40, 300))


def pickle_bytes(rng: random.Random, folder: Path) -> Open:
    """A .bin file, a zip archive or of the older form, with bytes or members damaged."""
    model = _model_folder(folder)
    weights = safetensors.torch.load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    path = model / "pytorch_model.bin"
    is_archive = rng.random() < 0.7
    torch.save(weights, path, _use_new_zipfile_serialization=is_archive)
    forge = damaged_archive if is_archive and rng.random() < 0.7 else damaged
    path.write_bytes(forge(rng, path.read_bytes()))
    return _open_model(model)


def pickles(rng: random.Random, folder: Path) -> Open:
    """A .bin file of anything but plain weights, or of code that would run; it must not."""
    model = _model_folder(folder)
    weights: dict[Any, Any] = dict(safetensors.torch.load_file(model / "model.safetensors"))
    (model / "model.safetensors").unlink()
    path, witness = model / "pytorch_model.bin", folder / "it-ran"
    name = rng.choice(list(weights))
    tensor, kind = weights[name], rng.randrange(4)
    if kind == 0:
        path.write_bytes(hostile_pickle(rng, witness))
    elif kind == 1:
        weights[rng.choice((name, "classifier.weight"))] = Writes(witness)
        torch.save(weights, path, _use_new_zipfile_serialization=rng.random() < 0.5)
    elif kind == 2:
        torch.save(_strange_object(rng, weights, name), path)
    else:
        for key in [name, name.replace(".key.", ".value.")]:
            weights[key] = _strange_tensor(rng.randrange(8), tensor)
        torch.save(weights, path)

    def load() -> Use | None:
        try:
            return _open_model(model)()
        finally:
            claim(not witness.exists(), "the code in a pickle ran")

    return load


def _strange_object(rng: random.Random, weights: dict[Any, Any], name: str) -> Any:
    deep: Any = {}
    for _ in range(rng.choice((1, 200))):
        deep = {"state_dict": deep}
    return rng.choice(
        (
            *(None, 7, [], {}, "weights", [weights], {"state_dict": None}, {"state_dict": {}}, deep, {name: None}),
            *({**weights, 7: weights[name]}, {**weights, 10**5000: weights[name]}, {**weights, (): weights[name]}),
            *({**weights, name: [1.0]}, {"state_dict": weights, "epoch": 7}, {"model": weights}, list(weights.items())),
        )
    )


def _strange_tensor(kind: int, tensor: torch.Tensor) -> torch.Tensor:
    if kind == 0:
        return torch.zeros(1).expand(2**45)  # four bytes that claim to be many
    if kind == 1:
        return torch.zeros(1).expand(2**20, 2**20)
    if kind == 2:
        return tensor.float().reshape(-1)[:1].expand(tensor.shape)  # of the right shape and one value
    if kind == 3:
        return torch.zeros(tensor.shape, device="meta")
    if kind == 4:
        return tensor.float().reshape(len(tensor) if tensor.ndim else 1, -1).to_sparse()
    if kind == 5:
        return torch.nn.Parameter(tensor.float())
    if kind == 6:
        return torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8)
    return tensor.float().to_sparse()


def config(rng: random.Random, folder: Path) -> Open:
    """A config.json of wrong types, numbers and nesting, no UTF-8, and many classes."""
    model = _model_folder(folder)
    path = model / "config.json"
    entries = json.loads(path.read_text(encoding="utf-8"))
    sizes = [name for name in entries if isinstance(entries[name], list | int) and name != "architectures"]
    kind = rng.randrange(10)
    if kind < 3:
        name = rng.choice(sizes)
        number = rng.choice((0, 1, 2, 3, 6, 16, 64, 2**10, 2**16, 2**20, 2**31, 2**40, 2**63, 10**400, -1))
        if isinstance(entries[name], list):
            entries[name][rng.randrange(len(entries[name]))] = number
        else:
            entries[name] = number
        path.write_bytes(json_bytes(entries))
    elif kind == 3:
        count = rng.choice((1, 8, 256, 4096, 100_000))
        names = {str(k): rng.choice(("wall", "\ud800", "x" * 50, "", 7)) for k in range(count)}
        changes: dict[str, Any] = rng.choice(({"id2label": names}, {"id2label": None, "num_labels": 10**9}))
        path.write_bytes(json_bytes({**entries, **changes}))
    else:
        path.write_bytes(forged_json(rng, entries))
    if rng.random() < 0.2:  # an encoder alone, whose decoder the configuration would size
        weights = safetensors.torch.load_file(model / "model.safetensors")
        kept = {name: tensor for name, tensor in weights.items() if not name.startswith("decode_head")}
        (model / "model.safetensors").write_bytes(safetensors.torch.save(kept))

        def load() -> None:
            Segformer.from_pretrained(model)

        return load
    return _open_model(model)


def processor_config(rng: random.Random, folder: Path) -> Open:
    """A preprocessor_config.json of wrong types, numbers and nesting."""
    path = _model_folder(folder) / "preprocessor_config.json"
    entries = json.loads(path.read_text(encoding="utf-8"))
    if rng.random() < 0.2:
        entries.update(keep_ratio_scale=[2048, 512], keep_ratio_multiple=32, reduce_labels=True)
    path.write_bytes(forged_json(rng, entries))

    def load() -> Use:
        processor = ImageProcessor.from_pretrained(path.parent)

        def use() -> None:
            pixels, labels = processor(Image.new("RGB", (20, 10), (255, 0, 9)), Image.new("L", (20, 10), 3))
            claim(bool(pixels.isfinite().all()), "pixels that are no numbers, and no word")
            claim(labels is not None and pixels.shape[1:] == labels.shape, "labels of another size than the pixels")
            processor.save_pretrained(folder / "again")
            again = ImageProcessor.from_pretrained(folder / "again")
            claim(again == processor, f"another processor when it is saved and read: {again}")

        return use

    return load


# -------------------------------------------------------------------------------------------------------------- rows


def _open_shard(path: Path) -> Open:
    def load() -> None:
        parts = open_rows(str(path), "train")
        dataset = SceneParse150(path, "train", LabelRule(num_labels=150, reduce_labels=True))
        claim(len(dataset) == sum(part.num_rows for part in parts), "rows that no shard has")
        problems = []
        for index in range(min(len(dataset), 40)):
            try:
                image, label_map = dataset[index]
                claim(image.mode == "RGB", f"a photo of mode {image.mode}")
                claim(label_map is None or label_map.size == image.size, "a label map of another size than its photo")
                claim(isinstance(dataset.name(index), str), "a name that is no text")
                claim(isinstance(dataset.scene_category(index), str | None), "a scene that is no text")
            except (ValueError, OSError) as error:
                check_error(error, path.parent)
                problems.append(error)
        if problems:
            raise problems[0]

    return load


def shard_bytes(rng: random.Random, folder: Path) -> Open:
    """A parquet file with bytes flipped or cut, or a footer with something in it that is not so."""
    content = rng.choice(sorted((base() / "shards").glob("*.parquet"))).read_bytes()
    length = int.from_bytes(content[-8:-4], "little")
    rows, footer = content[: -8 - length], content[-8 - length : -8]
    kind = rng.randrange(6)
    if kind == 0:
        content = damaged(rng, content, 0 if rng.random() < 0.7 else len(content) - 8)
    else:
        if kind in (1, 2):
            rows = damaged(rng, rows, 4)
        elif kind == 3:
            footer = damaged(rng, footer)
        else:
            footer = with_a_lie(rng, footer)
        content = rows + footer + len(footer).to_bytes(4, "little") + b"PAR1"
    return _open_shard(_written(folder / "train.parquet", content))


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def shard_rows(rng: random.Random, folder: Path) -> Open:
    """A whole parquet file of another schema, with junk for pictures, or with metadata that lies."""
    rows = list(_rows(10))
    cut, bomb = photos()["turned.jpg"][:-50], blank_png(60_000, 60_000, rows=1)
    junk: list[Any] = [b"", b"\x00", b"junk" * 100, None, cut, bomb]
    for _ in range(rng.choice((0, 0, 1, 3))):
        row, column = rng.choice(rows), rng.choice(("image", "annotation"))
        path = rng.choice((None, "a\x00b", "", "x" * 9000))
        row[column] = rng.choice((None, {"bytes": rng.choice(junk), "path": path}))
        row["scene_category"] = rng.choice((None, -1, 5, 2**62, 0))
    table = pa.Table.from_pylist(rows)
    kind = rng.randrange(9)  # of which the last three leave it as it is
    if kind == 0:
        headings = (["image", "image", "scene_category"], ["a", "b", "c"], ["", "\x00", "x"])
        table = table.rename_columns(rng.choice(headings))
    elif kind == 1:
        name = rng.choice(("image", "annotation", "scene_category"))
        column: list[Any] = rng.choice((list(range(10)), ["x"] * 10, [None] * 10, [[1]] * 10, [{"bytes": "x"}] * 10))
        table = table.set_column(table.column_names.index(name), name, pa.array(column))
    elif kind == 2:
        table = table.drop_columns(rng.choice(table.column_names))
    elif kind == 3:
        names = rng.choice((7, None, {}, "abc", [None], ["a"] * 9))
        features = {"info": {"features": {"scene_category": {"names": names}}}}
        told = rng.choice((forged_json(rng, features), b"\xff", b"[" * 100_000, json_bytes(features)))
        table = table.replace_schema_metadata({b"huggingface": told})
    elif kind == 4:  # text that is none
        files = table["image"].combine_chunks()
        table = table.set_column(0, "image", _not_text(files, rng.choice((b"\xff", b"a\xed\xa0\x80"))))
    elif kind == 5:
        table = table.slice(0, rng.choice((0, 1)))
    options = rng.choice(list(_SHARDS.values()))
    pq.write_table(table, folder / "train.parquet", store_schema=rng.random() < 0.5, **options)
    if rng.random() < 0.2:
        path = folder / "train.parquet"
        path.write_bytes(damaged(rng, path.read_bytes()))
    return _open_shard(folder / "train.parquet")


def _not_text(files: pa.StructArray, path: bytes) -> pa.StructArray:
    """The same files, their paths of bytes that are said to be text."""
    binary = pa.array([path] * len(files), pa.binary())
    names = pa.Array.from_buffers(pa.string(), len(files), binary.buffers())
    return pa.StructArray.from_arrays([files.field("bytes"), names], ["bytes", "path"])


def real_shard(rng: random.Random, folder: Path) -> Open:
    """A shard of the real SceneParse150 with bytes flipped or cut, most of them in its footer."""
    shards = Path(os.environ["SEGFORMER_REAL_DATA"]) / "datasets/zhoubolei/scene_parse_150/scene_parsing"
    content = (shards / "validation/0000.parquet").read_bytes()
    first = rng.choice((0, len(content) - 8 - int.from_bytes(content[-8:-4], "little")))
    return _open_shard(_written(folder / "train.parquet", damaged(rng, content, first)))


def prepared(rng: random.Random, folder: Path) -> Open:
    """The Arrow file that a split was copied to, damaged on the disk or in a cache that was handed on."""
    table = pq.read_table(base() / "shards/plain.parquet")
    path = folder / "rows.arrow"
    write_rows(path, [table.slice(first, 5) for first in (0, 5, 10)])
    content = path.read_bytes()
    kind = rng.randrange(4)
    if kind == 0:
        path.write_bytes(damaged(rng, content))
    elif kind == 1:  # the messages and the offsets, small numbers among zeros
        held = bytearray(content)
        places = [
            k for k in range(0, len(held) - 8, 4) if held[k + 2 : k + 4] == b"\0\0" and held[k : k + 4] != b"\0\0\0\0"
        ]
        for place in rng.sample(places, rng.choice((1, 2, 5))):
            number = rng.choice((0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, rng.randrange(len(content))))
            held[place : place + 4] = number.to_bytes(4, "little")
        path.write_bytes(held)
    elif kind == 2:
        path.write_bytes(damaged(rng, content, len(content) - 10 - int.from_bytes(content[-10:-6], "little")))
    else:
        other = rng.choice((table.drop_columns("image"), table.rename_columns(["a", "b", "c"]), table.slice(0, 0)))
        write_rows(path, [other])

    def load() -> None:
        rows = PreparedRows(path, str(path), ["halves"])
        for row in range(min(rows.num_rows, 40)):
            values = rows.row(row)
            for column in ("image", "annotation"):
                claim(isinstance(values[column], dict | None), f"{column} that is no file")
                if values[column]:
                    claim(isinstance(values[column]["bytes"], bytes | None), "bytes that are none")

    return load


# ---------------------------------------------------------------------------------------------------------- pictures


@cache
def _segmenter() -> Segmenter:
    return Segmenter.from_pretrained(base() / "model", device="cpu")


def _forged_picture(rng: random.Random, name: str, content: bytes) -> bytes:
    if rng.random() < 0.4 and name.endswith((".png", ".jpg")):
        return (forged_png if name.endswith(".png") else forged_jpeg)(rng, content)
    return damaged(rng, content, 0, None if rng.random() < 0.5 else min(len(content), 200))


def photo(rng: random.Random, folder: Path) -> Open:
    """A photo of any form, damaged or forged, as bytes or as a file."""
    often = ["turned.jpg", "progressive.jpg", "colour.png", "palette.png", "moving.gif"]
    name = rng.choice(often) if rng.random() < 0.7 else rng.choice(sorted(photos()))
    content = _forged_picture(rng, name, photos()[name])
    path = _written(folder / name, content)
    source: Any = rng.choice((path, str(path), content))

    def load() -> None:
        label_map = _segmenter().label_map(source)
        claim(label_map.ndim == 2 and label_map.size > 0 and int(label_map.max()) < 7, "a label map that is none")

    return load


def pair(rng: random.Random, folder: Path) -> Open:
    """A photo and its label map in a folder of images, one of them damaged or forged."""
    photo_name = rng.choice(("colour.png", "grey.jpg", "progressive.jpg", "lines.tif", "palette.png"))
    map_name = rng.choice(sorted(label_maps()))
    image, annotation = photos()[photo_name], label_maps()[map_name]
    if rng.random() < 0.4:
        image = _forged_picture(rng, photo_name, image)
    else:
        annotation = _forged_picture(rng, map_name, annotation)
    for where, name, content in (("images", photo_name, image), ("annotations", map_name, annotation)):
        (folder / where).mkdir()
        _written(folder / where / f"scene{Path(name).suffix}", content)
    rule = LabelRule(num_labels=7, reduce_labels=False, ignore_index=rng.choice((None, 255)))

    def load() -> None:
        dataset = SceneParse150(folder, "train", rule)
        photo, label_map = dataset[0]
        claim(photo.mode == "RGB" and label_map is not None and label_map.size == photo.size, "no photo with its map")
        claim(set(np.unique(np.asarray(label_map))) <= {*range(7), 255}, "labels that the rule does not allow")

    return load


# -------------------------------------------------------------------------------------------------------------- runs


def _sealed(checkpoint: Path) -> None:
    """Have the sums that a checkpoint may carry be right again, as somebody who forges one would."""
    sums = checkpoint / "SHA256SUMS"
    if sums.exists():
        files = sorted(path for path in checkpoint.iterdir() if path != sums)
        lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
        sums.write_text("".join(lines), encoding="utf-8")


def _strange_state(rng: random.Random, state: Any) -> Any:
    """A training state with something in it replaced, at any depth."""
    held = dict(state)
    kind = rng.randrange(4)
    if kind == 0:
        held.pop(rng.choice(list(held)))
    elif kind == 1:
        held[rng.choice(list(held))] = _plain(strange_value(rng))
    elif kind == 2:
        name = rng.choice([name for name, entry in held.items() if isinstance(entry, dict)])
        entry = {**held[name]}
        held[name] = {**entry, rng.choice([*entry, "strange"]): _plain(strange_value(rng))}
    else:
        optimizer = {**held["optimizer"], "state": {k: {**v} for k, v in held["optimizer"]["state"].items()}}
        optimizer["param_groups"] = [{**group} for group in optimizer["param_groups"]]
        moments = rng.choice([*optimizer["state"].values(), *optimizer["param_groups"]])
        endless = torch.zeros(1).expand(2**40)
        tensor: Any = rng.choice((endless, torch.zeros(0), torch.tensor(math.nan), torch.zeros(2, 2)))
        name = rng.choice(list(moments))
        if rng.random() < 0.2:
            del moments[name]
        else:
            moments[name] = rng.choice((tensor, _plain(strange_value(rng))))
        held["optimizer"] = optimizer
    return held


def _plain(value: Any) -> Any:
    """A value without half a surrogate pair, which no pickle holds."""
    return value.replace("\ud800", "?") if isinstance(value, str) else value


def _forged_state(rng: random.Random, path: Path, witness: Path) -> None:
    kind = rng.randrange(6)
    if kind == 0:
        path.write_bytes(hostile_pickle(rng, witness))
    elif kind == 1:
        state = torch.load(path, weights_only=True)
        torch.save({**state, rng.choice(list(state)): Writes(witness)}, path)
    elif kind == 2:
        path.write_bytes(damaged_archive(rng, path.read_bytes()))
    elif kind == 3:
        path.write_bytes(damaged(rng, path.read_bytes()))
    else:
        torch.save(_strange_state(rng, torch.load(path, weights_only=True)), path)


def training_state(rng: random.Random, folder: Path) -> Open:
    """A training_state.pt with bytes or members damaged, of another structure, or of code that would run."""
    checkpoint = Path(shutil.copytree(trained() / "run/checkpoint-2", folder / "checkpoint-2"))
    witness = folder / "it-ran"
    _forged_state(rng, checkpoint / "training_state.pt", witness)

    def load() -> None:
        try:
            state = read_training_state(checkpoint)
            claim(isinstance(state, dict), "a state that is no dict")
        finally:
            claim(not witness.exists(), "the code in a pickle ran")

    return load


def resumed(rng: random.Random, folder: Path) -> Open:
    """A run that goes on from a checkpoint whose training state, sums and all, was forged."""
    shutil.copytree(trained() / "data", folder / "data")
    run = Path(shutil.copytree(trained() / "run", folder / "run"))
    path = run / "checkpoint-1/training_state.pt"
    state = torch.load(path, weights_only=True)
    torch.save(_strange_state(rng, {**state, "config": {**state["config"], "dataset": str(folder / "data")}}), path)
    _sealed(run / "checkpoint-1")

    def train() -> None:
        training.train(
            _settings(run, checkpoint=str(base() / "model"), resume_from_checkpoint=str(run / "checkpoint-1"))
        )
        entries = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        claim([entry["step"] for entry in entries if "loss" in entry] == [1, 2], "a run of other steps")

    return lambda: train  # what does not fit this run is told with both values, not with the file


def checkpoints(rng: random.Random, folder: Path) -> Open:
    """A run of two checkpoints, the newer one with one of its files damaged: the older one is gone on from."""
    run = Path(shutil.copytree(trained() / "run", folder / "run"))
    newer = run / "checkpoint-2"
    path = rng.choice(sorted(newer.iterdir()))
    witness = folder / "it-ran"
    if path.name == "training_state.pt":
        _forged_state(rng, path, witness)
    elif path.suffix == ".json":
        path.write_bytes(forged_json(rng, json.loads(path.read_text(encoding="utf-8"))))
    else:
        path.write_bytes(damaged(rng, path.read_bytes()))
    if rng.random() < 0.5:
        _sealed(newer)
    alone = rng.random() < 0.3
    if alone:
        shutil.rmtree(run / "checkpoint-1")

    def load() -> None:
        try:
            found = newest_checkpoint(run)
        except ValueError:
            claim(alone, "no checkpoint to go on from, though the older one is whole")
            raise
        finally:
            claim(not witness.exists(), "the code in a pickle ran")
        claim(found in (newer, run / "checkpoint-1"), f"a checkpoint that is none: {found}")

    return load


def log(rng: random.Random, folder: Path) -> Open:
    """The log of a run that goes on, with bytes or entries damaged."""
    write_log(folder, last_step=60)
    path = folder / "log.jsonl"
    path.write_bytes(_forged_log(rng, path.read_bytes()))
    before = path.read_bytes()

    def load() -> None:
        try:
            held = Log(folder, last_step=40)
        except (ValueError, OSError):
            claim(path.read_bytes() == before, "a log that is refused and yet changed")
            raise
        held.add(41, 0.41, {"loss": math.nan})
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        claim(all(float(entry["step"]) <= 41 for entry in entries), "entries beyond the step that is gone on from")
        claim(entries[-1]["step"] == 41, "an entry that is not there")

    return load


def _forged_log(rng: random.Random, content: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    kind = rng.randrange(3)
    if kind == 0:
        return damaged(rng, content)
    place = rng.randrange(len(lines))
    entry = json.loads(lines[place])
    if kind == 1:
        entry["step"] = strange_value(rng)
        lines[place] = json_bytes(entry) + b"\n"
    else:
        lines[place] = forged_json(rng, entry) + b"\n"
    return b"".join(lines)


def report(rng: random.Random, folder: Path) -> Open:
    """The folder of a run with one of the files that its report is made from damaged: there is a page nevertheless."""
    run = Path(shutil.copytree(base() / "run", folder / "run"))
    path = rng.choice(sorted(path for path in run.rglob("*") if path.is_file()))
    if path.name == "log.jsonl":
        path.write_bytes(_forged_log(rng, path.read_bytes()))
    elif path.suffix == ".json":
        entries = json.loads(path.read_text(encoding="utf-8"))
        if path.name == "run.json" and rng.random() < 0.3:
            entries["class_names"] = []  # then they are those of config.json
        path.write_bytes(forged_json(rng, entries))
    elif rng.random() < 0.3:
        others = (*photos().values(), *label_maps().values(), blank_png(30_000, 30_000, rows=1), blank_png(64, 48, 16))
        path.write_bytes(rng.choice(others))
    else:
        path.write_bytes(_forged_picture(rng, path.name, path.read_bytes()))
    if path.name == "config.json":
        _without_names(run / "run.json")

    def load() -> None:
        try:
            page = build_report(run).read_text(encoding="utf-8")
        except (ValueError, OSError) as error:
            raise Witnessed(f"no page: {type(error).__name__}: {error}") from error
        claim(page.rstrip().endswith("</html>"), "half a page")
        claim("<script>alert(1)" not in page, "a page that runs what was in a file")

    return load


def _without_names(path: Path) -> None:
    entries = json.loads(path.read_text(encoding="utf-8"))
    path.write_bytes(json_bytes({**entries, "class_names": []}))


def label_names(rng: random.Random, folder: Path) -> Open:
    """A file of class names: JSON of three forms, or a name a line."""
    forms: list[Any] = [CLASS_NAMES, {str(k): name for k, name in enumerate(CLASS_NAMES)}]
    forms.append({name: k for k, name in enumerate(CLASS_NAMES)})
    if rng.random() < 0.6:
        path = _written(folder / "names.json", forged_json(rng, rng.choice(forms)))
    else:
        lines = list(CLASS_NAMES)
        for _ in range(rng.choice((0, 0, 1, 300))):
            line = rng.choice(("", " ", "\x00", "x" * 1000, "wall", f"class {rng.random()}"))
            lines.insert(rng.randrange(len(lines)), line)
        text = "\n".join(lines).encode(rng.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16", "cp037")))
        path = _written(folder / "names.txt", damaged(rng, text) if rng.random() < 0.6 else text)

    def load() -> None:
        names = read_label_names(path)
        claim(1 <= len(names) <= 255 and len(set(names)) == len(names), "names that are none, or not of one class each")
        claim(all(isinstance(name, str) and name.strip() for name in names), "a name that is none")

    return load


# ------------------------------------------------------------------------------------------------------------- faults


def crash(rng: random.Random, folder: Path) -> Open:
    """What a parser in C may do: read where nothing is."""
    return lambda: ctypes.string_at(0)


def hang(rng: random.Random, folder: Path) -> Open:
    """What a parser may do: never end."""

    def forever() -> None:
        while True:
            pass

    return forever


def leak(rng: random.Random, folder: Path) -> Open:
    """What a reader may do: let an error of somebody else's through, that names no file."""

    def load() -> None:
        json.loads("[")

    return load


def litter(rng: random.Random, folder: Path) -> Open:
    """What a writer may do: leave half a file."""

    def load() -> None:
        (folder / "log.jsonl.unfinished").write_bytes(b"")

    return load


FAULTS = (crash, hang, leak, litter)
KINDS: dict[str, Callable[[random.Random, Path], Open]] = {
    make.__name__: make
    for make in (
        *(safetensors_bytes, safetensors_header, tensors, pickle_bytes, pickles, config, processor_config),
        *(shard_bytes, shard_rows, real_shard, prepared, photo, pair),
        *(training_state, resumed, checkpoints, log, report, label_names),
        *FAULTS,
    )
}


def warm_up() -> None:
    """Make what most inputs are made from, before memory is bounded."""
    _segmenter()

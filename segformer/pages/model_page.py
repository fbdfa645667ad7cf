"""A page that segments photos in a browser, with the graph that it runs: ``python -m segformer.export RUN FOLDER``.

The folder works from any web server and from the disk. Browsers let a page from the disk load scripts and nothing else,
so that graph and runtime stand in scripts, packed, and the page has no other way to load them: its policy forbids the
browser every connection, and with it to send a photo anywhere. ``web/segment.js`` does in a worker what the processor
and ``fullres`` do here, around the graph; ``web/viewer.js`` shows what it found as the page of ``infer.py`` does.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from segformer.files import write_atomically
from segformer.pages.page import Html, asset, render_page
from segformer.pages.viewer import MOST_CLASSES, STYLES, class_entries, facts_section, help_dialog, viewer
from segformer.segmenter import Segmenter

PACKAGE = "onnxruntime-web"
RUNTIME_FILES = ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
PAGE_NAME, MODEL_SCRIPT, RUNTIME_SCRIPT = "index.html", "model.js", "runtime.js"
_OURS = {PAGE_NAME, MODEL_SCRIPT, RUNTIME_SCRIPT, "model.onnx"}
_CHUNK = 2**22  # characters of a string in a script, a multiple of 4
# 'self' is the two scripts beside the page; blob: what they hold, unpacked; and a graph is WebAssembly's to run.
_SOURCES = {"script-src": "'self' blob: 'wasm-unsafe-eval'", "worker-src": "blob:"}


@dataclass(frozen=True)
class Runtime:
    """The files of onnxruntime-web."""

    folder: Path
    version: str

    def __str__(self) -> str:
        return f"{PACKAGE} {self.version}"

    def read(self) -> dict[str, bytes]:
        """What a page needs of it: its script, what that imports, and the WebAssembly."""
        code, glue, wasm = ((self.folder / name).read_bytes() for name in RUNTIME_FILES)
        return {"code": code, "glue": glue, "wasm": wasm}


def find_runtime(folder: Path | None) -> Runtime:
    """The runtime in a folder, or of an npm package in reach. Raises FileNotFoundError, naming what is missing."""
    places = [folder] if folder else [*_npm_folders()]
    for place in places:
        for files in (place / "dist", place):
            if all((files / name).is_file() for name in RUNTIME_FILES):
                return Runtime(files, _version(files))
    if folder is None:
        raise FileNotFoundError(
            f"no {PACKAGE} to put on the page, here or in a folder above; npm install {PACKAGE}, or name a folder of "
            f"its files by --runtime"
        )
    lost = [name for name in RUNTIME_FILES if not (folder / name).is_file()]
    raise FileNotFoundError(f"--runtime {folder} lacks {', '.join(lost)}; it is the dist folder of {PACKAGE}")


def _npm_folders() -> Iterator[Path]:
    """Where npm puts the package: below this folder, those above it, and for all of a machine."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        yield folder / "node_modules" / PACKAGE
    if npm := shutil.which("npm"):
        with suppress(OSError, subprocess.SubprocessError):
            asked = subprocess.run([npm, "root", "-g"], capture_output=True, text=True, timeout=30, check=True)
            yield Path(asked.stdout.strip()) / PACKAGE


def _version(files: Path) -> str:
    """The version of the package that some files are of."""
    for place in (files, files.parent):
        with suppress(OSError, ValueError, KeyError, TypeError):
            about = json.loads((place / "package.json").read_text(encoding="utf-8"))
            if about["name"] == PACKAGE:
                return str(about["version"])
    banner = (files / RUNTIME_FILES[0]).read_bytes()[:400].decode("utf-8", "replace")
    found = re.search(r"ONNX Runtime Web v([\w.-]+)", banner)
    return found[1] if found else "of unknown version"


@contextmanager
def page_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A folder under another name, which becomes ``folder`` where all goes well and nothing where not.

    Raises ValueError or FileNotFoundError for a place that takes none. One that is there is replaced only with
    ``overwrite``, and only if it holds nothing but an earlier page.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder for a page, or a file in .onnx or .pt2")
    held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if held and not overwrite:
        raise ValueError(f"{folder} is there already; pass --overwrite, or name another folder")
    if strangers := [name for name in held if name not in _OURS]:
        raise ValueError(f"{folder} holds {strangers[0]}, which is of no page; name another folder")
    if not folder.absolute().parent.is_dir():
        raise FileNotFoundError(f"no folder {folder.absolute().parent} to make {folder.name} in; make it first")
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    earlier = folder.with_name(f"{folder.name}.earlier")
    try:
        yield unfinished
        if folder.is_dir():
            folder.rename(earlier)
        try:
            unfinished.rename(folder)
        finally:
            if earlier.is_dir() and not folder.is_dir():
                earlier.rename(folder)
        shutil.rmtree(earlier, ignore_errors=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_model_page(
    folder: Path, segmenter: Segmenter, graph: Path, runtime: Runtime, title: str, facts: Mapping[str, str]
) -> None:
    """Write the page of a ``segmenter`` whose ``graph`` takes images to logits, and the two scripts that it loads.

    Raises ValueError for a processor whose filter the page lacks and for more classes than it has colours to show.
    """
    _check(segmenter)
    content = graph.read_bytes()
    page = _render(segmenter, len(content), runtime, title, facts)
    scripts = {
        MODEL_SCRIPT: _script(f"{graph.name}, packed", {"model": content}),
        RUNTIME_SCRIPT: _script(f"{runtime}, MIT License, Copyright (c) Microsoft Corporation, packed", runtime.read()),
    }
    for name, text in {PAGE_NAME: page, **scripts}.items():
        try:
            write_atomically(folder / name, text)
        except OSError as error:
            needed = f"{len(text) / 2**20:.0f} MiB"
            raise OSError(f"cannot write {name} of the page ({error.strerror}); it takes {needed}") from error


def _render(segmenter: Segmenter, graph_bytes: int, runtime: Runtime, title: str, facts: Mapping[str, str]) -> Html:
    body = asset("live.html").fill(
        title=title,
        viewer=viewer({"given": "As chosen", "name": "By name"}, Html("")),
        facts=facts_section(facts),
        help=help_dialog(truth=False),
        runtime=str(runtime),
    )
    processor, config = segmenter.processor, segmenter.model.config
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, 2))
    names = [name.strip() or f"class {k}" for k, name in config.id2label.items()]
    data = {
        "classes": class_entries(names, segmenter.colours),
        "photos": [],
        "processor": {
            "size": list(processor.size) if processor.do_resize else None,
            "levels": replace(processor, do_resize=False).image_to_tensor(ramp)[:, 0].tolist(),  # (3, 256)
            "mayGoDownFirst": int(PIL.__version__.partition(".")[0]) >= 13,
        },
        "graphBytes": graph_bytes,
        "worker": asset("segment.js"),
    }
    return render_page(title, body, [*STYLES, "live.css"], ["viewer.js", "live.js"], data, _SOURCES)


def _script(what: str, parts: Mapping[str, bytes]) -> str:
    """A script that holds files: compressed, as text, in strings that no browser finds too long."""
    lines = [f"/* {what}. */", "self.packed ??= {};"]
    for name, content in parts.items():
        text = base64.b64encode(gzip.compress(content, mtime=0)).decode("ascii")
        chunks = (text[first : first + _CHUNK] for first in range(0, len(text), _CHUNK))
        lines.append(f"self.packed.{name} = [{','.join(json.dumps(chunk) for chunk in chunks)}];")
    return "\n".join(lines) + "\n"


def _check(segmenter: Segmenter) -> None:
    processor, num_labels = segmenter.processor, segmenter.model.config.num_labels
    if num_labels > MOST_CLASSES:
        raise ValueError(f"the model has {num_labels} classes; a page shows {MOST_CLASSES} at most")
    if processor.do_resize and processor.resample != Image.Resampling.BILINEAR:
        raise ValueError(
            f"the processor resizes by {Image.Resampling(processor.resample).name.lower()}; a page does so bilinearly"
        )
    if processor.do_resize and processor.resize_mode != "squash":
        raise ValueError(
            f"the processor keeps the shape of photos (resize_mode {processor.resize_mode}), which a page does not; "
            "export an .onnx, which infer.py takes as a checkpoint"
        )

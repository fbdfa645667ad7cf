"""The page of an exported model as files: what is in them, and that nothing of it stands where something failed."""

from __future__ import annotations

import base64
import errno
import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
from markup import Markup
from PIL import Image
from run_folders import HOSTILE
from runtime import NAMES, SampledModel, sampled_segmenter, write_graph, write_runtime

from segformer import ImageProcessor, SegformerConfig, Segmenter
from segformer.export import export_page, main
from segformer.pages.model_page import RUNTIME_FILES, Runtime, find_runtime, page_folder, write_model_page


def written(folder: Path, processor: ImageProcessor | None = None, title: str = "Segment photos with toy-1") -> Path:
    """A page of the stand-in's model."""
    runtime = find_runtime(write_runtime(folder.with_name(f"{folder.name}-runtime")))
    folder.mkdir()
    graph = write_graph(folder / "model.onnx")
    segmenter = sampled_segmenter(processor or ImageProcessor(size=(48, 64)))
    write_model_page(folder, segmenter, graph, runtime, title, {"Checkpoint": "runs/toy-1"})
    return folder


def packed(script: Path) -> dict[str, bytes]:
    """The files that a script holds."""
    found = re.findall(r"^self\.packed\.(\w+) = (\[.*\]);$", script.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: gzip.decompress(base64.b64decode("".join(json.loads(chunks)))) for name, chunks in found}


def test_the_folder_holds_page_graph_and_runtime(tmp_path: Path) -> None:
    folder = written(tmp_path / "site")
    assert sorted(path.name for path in folder.iterdir()) == ["index.html", "model.js", "model.onnx", "runtime.js"]
    assert packed(folder / "model.js") == {"model": (folder / "model.onnx").read_bytes()}
    contents = [(tmp_path / "site-runtime" / name).read_bytes() for name in RUNTIME_FILES]
    assert packed(folder / "runtime.js") == dict(zip(("code", "glue", "wasm"), contents, strict=True))


def test_a_large_file_stands_in_several_strings(tmp_path: Path) -> None:
    runtime = write_runtime(tmp_path / "runtime")
    large = np.random.default_rng(0).bytes(2**22)
    (runtime / RUNTIME_FILES[2]).write_bytes(large)
    graph = write_graph(tmp_path / "model.onnx")
    write_model_page(tmp_path, sampled_segmenter(ImageProcessor()), graph, find_runtime(runtime), "t", {})
    assert packed(tmp_path / "runtime.js")["wasm"] == large
    strings = re.findall(r'"([^"]*)"', (tmp_path / "runtime.js").read_text())
    assert max(map(len, strings)) <= 2**22


def test_the_page_is_well_formed_and_may_connect_to_nothing(tmp_path: Path) -> None:
    markup = Markup((written(tmp_path / "site") / "index.html").read_text(encoding="utf-8"))
    assert markup.faults == []
    policy = markup.one("meta", http_equiv="Content-Security-Policy").attributes["content"]
    allowed = dict(each.split(" ", 1) for each in policy.split("; "))
    assert allowed["default-src"] == "'none'"
    assert not {"connect-src", "frame-src", "object-src"} & set(allowed)  # the default holds for them
    assert allowed["form-action"] == "'none'"
    assert set(allowed["script-src"].split()) - {"'self'", "blob:", "'wasm-unsafe-eval'"} == {
        next(each for each in allowed["script-src"].split() if each.startswith("'sha256-"))
    }
    assert "Copyright (c) Microsoft Corporation" in markup.one("footer").text
    assert "onnxruntime-web 9.8.7" in markup.one("footer").text


def test_the_script_is_told_what_the_processor_does(tmp_path: Path) -> None:
    processor = ImageProcessor(size=(48, 64), image_mean=(0.4, 0.5, 0.6), image_std=(0.2, 0.3, 0.4))
    markup = Markup((written(tmp_path / "site", processor) / "index.html").read_text(encoding="utf-8"))
    data = json.loads(markup.one("script", id="data").text)
    assert data["processor"]["size"] == [48, 64]
    assert [each["name"] for each in data["classes"]] == [name.strip() for name in NAMES]
    levels = np.float32(data["processor"]["levels"])
    photo = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    expected = processor.image_to_tensor(Image.fromarray(photo)).numpy()
    assert (np.stack([levels[c][photo[..., c]] for c in range(3)]) == expected).all()


@pytest.mark.parametrize("text", HOSTILE)
def test_names_on_the_page_are_text(text: str, tmp_path: Path) -> None:
    markup = Markup((written(tmp_path / "site", title=text) / "index.html").read_text(encoding="utf-8"))
    assert markup.faults == []
    assert markup.one("h1").text == text.encode("utf-8", "replace").decode()


def test_a_filter_that_the_page_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the processor resizes by lanczos; a page does so bilinearly"):
        written(tmp_path / "site", ImageProcessor(resample=Image.Resampling.LANCZOS.value))


@pytest.mark.parametrize("mode", ["keep", "crop"])
def test_a_processor_that_keeps_the_shape_of_photos_is_refused_for_the_page_does_not(tmp_path: Path, mode: str) -> None:
    with pytest.raises(ValueError, match=rf"keeps the shape of photos \(resize_mode {mode}\), which a page does not"):
        written(tmp_path / "site", ImageProcessor(resize_mode=mode))


def test_more_classes_than_a_byte_holds_are_refused(tmp_path: Path) -> None:
    model = SampledModel([[0.0] * 3] * 256)
    model.config = SegformerConfig(num_labels=256)
    runtime = find_runtime(write_runtime(tmp_path / "runtime"))
    segmenter = Segmenter(model, ImageProcessor(), "cpu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has 256 classes; a page shows 255 at most"):
        write_model_page(tmp_path, segmenter, write_graph(tmp_path / "model.onnx"), runtime, "t", {})
    assert not (tmp_path / "index.html").exists()


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = find_runtime(write_runtime(tmp_path / "runtime"))
    graph = write_graph(tmp_path / "model.onnx")
    write = Path.write_bytes

    def half(path: Path, content: bytes) -> int:
        write(path, content[:10])
        if path.name.startswith("runtime.js"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return len(content)

    def fail() -> None:
        with page_folder(tmp_path / "site", overwrite=False) as unfinished:
            write_model_page(unfinished, sampled_segmenter(ImageProcessor()), graph, runtime, "t", {})

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match=r"cannot write runtime\.js of the page \(No space left on device\); it takes"):
        fail()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "runtime"]


# The runtime


def test_the_runtime_is_found_in_a_folder_or_in_its_dist(tmp_path: Path) -> None:
    package = tmp_path / "onnxruntime-web"
    files = write_runtime(package / "dist")
    (package / "package.json").write_text('{"name": "onnxruntime-web", "version": "1.2.3"}')
    assert find_runtime(package) == find_runtime(files) == Runtime(files, "1.2.3")
    (package / "package.json").write_text('{"name": "another", "version": "1.2.3"}')
    assert find_runtime(files).version == "9.8.7"  # as its script says


def test_the_package_is_found_in_a_folder_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_runtime(tmp_path / "node_modules/onnxruntime-web/dist")
    (tmp_path / "a/b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a/b")
    assert find_runtime(None).folder == files


def test_no_runtime_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")  # and so without npm
    with pytest.raises(FileNotFoundError, match=r"no onnxruntime-web .*; npm install onnxruntime-web, or .* --runtime"):
        export_page("no-such/model", tmp_path / "site")
    assert list(tmp_path.iterdir()) == []


def test_a_runtime_that_lacks_a_file_is_refused_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = write_runtime(tmp_path / "runtime")
    (runtime / RUNTIME_FILES[2]).unlink()
    words = ["export", "no-such/model", str(tmp_path / "site"), "--runtime", str(runtime)]
    monkeypatch.setattr("sys.argv", words)
    assert main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: --runtime {runtime} lacks {RUNTIME_FILES[2]}; it is the dist folder of onnxruntime-web"
    assert [path.name for path in tmp_path.iterdir()] == ["runtime"]


# The folder


def held(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_page_that_fails_leaves_nothing_and_the_one_before(tmp_path: Path) -> None:
    def fail() -> None:
        with page_folder(tmp_path / "site", overwrite=True) as unfinished:
            (unfinished / "index.html").write_text("half")
            raise OSError("the disk is full")

    for _ in range(2):
        with pytest.raises(OSError, match="full"):
            fail()
        assert held(tmp_path) in ({}, {"site/index.html": "old"})
        (tmp_path / "site").mkdir(exist_ok=True)
        (tmp_path / "site/index.html").write_text("old")
    assert held(tmp_path) == {"site/index.html": "old"}


def test_an_earlier_page_is_replaced_only_if_asked(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/index.html").write_text("old")
    with (
        pytest.raises(ValueError, match="site is there already; pass --overwrite"),
        page_folder(tmp_path / "site", overwrite=False),
    ):
        pass
    with page_folder(tmp_path / "site", overwrite=True) as unfinished:
        (unfinished / "model.js").write_text("new")
    assert held(tmp_path) == {"site/model.js": "new"}


def test_a_folder_of_anything_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/thesis.txt").write_text("precious")
    with (
        pytest.raises(ValueError, match=r"site holds thesis\.txt, which is of no page"),
        page_folder(tmp_path / "site", overwrite=True),
    ):
        pass
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ValueError, match="file is a file; name a folder"), page_folder(tmp_path / "file", True):
        pass
    with (
        pytest.raises(FileNotFoundError, match=r"no folder .*gone to make site in"),
        page_folder(tmp_path / "gone/site", True),
    ):
        pass
    assert held(tmp_path) == {"site/thesis.txt": "precious", "file": "precious"}

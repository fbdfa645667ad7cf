"""Shards from the Hub, by the real client, against a server on this machine that counts what it sends."""

from __future__ import annotations

import io
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import programs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import IMPATIENT, Files, HubServer, Repository
from PIL import Image
from programs import ROOT

from data.sources.shards import write_shard

SHARD = "scene_parsing/train/0000.parquet"
HOME = "datasets/zhoubolei/scene_parse_150"

# huggingface_hub reads its environment when it is imported, so every start is a process of its own.
START = """
import json, sys, time
started = time.perf_counter()
from data import SceneParse150
try:
    dataset = SceneParse150(*sys.argv[1:])
    dataset[0]
    seconds = time.perf_counter() - started
    numbers = [dataset[i][0].getpixel((0, 0))[0] + 256 * dataset[i][0].getpixel((0, 0))[1] for i in range(len(dataset))]
    print(json.dumps({"numbers": numbers, "seconds": seconds, "where": dataset.where(0), "name": dataset.name(0)}))
except Exception as error:
    print(json.dumps({"error": type(error).__name__, "message": str(error)}))
"""


class Home:
    """A cache folder, and the starts of programs that use it."""

    def __init__(self, folder: Path, hub: HubServer) -> None:
        self.folder = folder
        self.hub = hub

    def start(self, source: str, split: str, first: str = "", **variables: str) -> dict[str, Any]:
        """What a program finds that opens the dataset; the log and counts of the Hub begin anew."""
        self.hub.log.clear()
        self.hub.sent_bytes.clear()
        environment = self.environment() | variables
        done = programs.run("-c", first + START, source, split, environment=environment, folder=self.folder)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout.splitlines()[-1])
        print(answer, done.stderr)  # shown where a test fails
        return answer | {"stderr": done.stderr}

    def environment(self) -> dict[str, str]:
        """That of a program which is to meet this cache and this Hub and no others."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE_"))}
        places = {"HF_HOME": str(self.folder), "HF_ENDPOINT": self.hub.url, "PYTHONPATH": str(ROOT)}
        return kept | places | {"NO_PROXY": "127.0.0.1,localhost"}

    def asked(self, word: str) -> list[str]:
        return [line for line in self.hub.log if word in line]


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def home(tmp_path: Path, hub: HubServer) -> Home:
    (tmp_path / "home").mkdir()
    return Home(tmp_path / "home", hub)


def shard(numbers: range, padding: int = 0) -> bytes:
    """A shard whose photos carry a number in their first pixel, and bytes after their end that weigh something."""
    label_map = io.BytesIO()
    Image.new("L", (4, 3), 1).save(label_map, "PNG")
    weight = np.random.default_rng(numbers.start).bytes(padding)

    def rows() -> Iterator[dict[str, Any]]:
        for number in numbers:
            photo = io.BytesIO()
            Image.new("RGB", (4, 3), (number % 256, number // 256, 0)).save(photo, "PNG")
            image = {"bytes": photo.getvalue() + weight, "path": f"ADE_{number:08d}.jpg"}
            yield {"image": image, "annotation": {"bytes": label_map.getvalue(), "path": None}, "scene_category": 0}

    return _written(rows())


def _written(rows: Iterator[dict[str, Any]]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard.parquet"
        write_shard(path, rows, ["room"])
        return path.read_bytes()


@pytest.fixture(scope="module")
def large_shard() -> bytes:
    """30 row groups of 100 rows, 30 MB: a tenth of what a train shard weighs."""
    return shard(range(3000), padding=10_000)


def serve(hub: HubServer, files: Files, name: str = HOME, revision: str = "refs/convert/parquet", **more: Any) -> None:
    hub.repositories[name] = Repository({"main": {"README.md": b"."}, revision: files}, **more)


# A slice


def test_a_slice_of_a_large_shard_costs_its_row_group_and_a_second_start_nothing(
    hub: HubServer, home: Home, large_shard: bytes
) -> None:
    serve(hub, {SHARD: large_shard})
    first = home.start("scene_parse_150", "train[:50]")
    assert first["numbers"] == list(range(50))
    assert 0.01 < sum(hub.sent_bytes.values()) / len(large_shard) < 0.04  # a group is a thirtieth of this shard
    again = home.start("scene_parse_150", "train[:50]")
    assert again["numbers"] == first["numbers"]
    assert hub.sent_bytes == {}
    assert home.asked("resolve") == []
    offline = home.start("scene_parse_150", "train[:50]", HF_HUB_OFFLINE="1")
    assert offline["numbers"] == first["numbers"]
    assert hub.log == []


def test_a_further_slice_fetches_only_what_is_missing(hub: HubServer, home: Home, large_shard: bytes) -> None:
    serve(hub, {SHARD: large_shard})
    home.start("scene_parse_150", "train[:50]")
    beyond = home.start("scene_parse_150", "train[50:150]")
    assert beyond["numbers"] == list(range(50, 150))
    assert sum(hub.sent_bytes.values()) < 1.1 * len(large_shard) / 30


@pytest.mark.parametrize(
    ("split", "rows"),
    [
        ("train[-3:]", range(2997, 3000)),
        ("train[99%:]", range(2970, 3000)),
        ("train[:2]+train[-2:]", [0, 1, 2998, 2999]),
    ],
)
def test_slices_from_the_end_and_in_percent(
    split: str, rows: list[int], hub: HubServer, home: Home, large_shard: bytes
) -> None:
    serve(hub, {SHARD: large_shard})
    assert home.start("scene_parse_150", split)["numbers"] == list(rows)
    assert sum(hub.sent_bytes.values()) < 0.08 * len(large_shard)


def test_messages_name_row_and_file(hub: HubServer, home: Home) -> None:
    serve(hub, {SHARD: shard(range(250))})
    found = home.start("scene_parse_150", "train[203:204]")
    assert found["where"] == f"row 203 in zhoubolei/scene_parse_150/{SHARD}"
    assert found["name"] == "ADE_00000203"


def test_a_cut_connection_is_tried_again(hub: HubServer, home: Home) -> None:
    serve(hub, {SHARD: shard(range(500), padding=2000)})
    hub.cuts = [100, 60_000]
    assert home.start("scene_parse_150", "train[:5]")["numbers"] == list(range(5))
    assert hub.cuts == []


def test_the_data_of_a_new_commit_replaces_that_of_the_old_one(hub: HubServer, home: Home) -> None:
    serve(hub, {SHARD: shard(range(300))})
    assert home.start("scene_parse_150", "train[:2]")["numbers"] == [0, 1]
    serve(hub, {SHARD: shard(range(7, 300))})
    assert home.start("scene_parse_150", "train[:2]")["numbers"] == [7, 8]


def test_two_starts_at_once_fetch_once(hub: HubServer, home: Home) -> None:
    serve(hub, {SHARD: shard(range(500), padding=20_000)})
    words = ("-c", START, "scene_parse_150", "train[:5]")
    running = [programs.start(*words, environment=home.environment()) for _ in range(3)]
    answers = [json.loads(process.communicate(timeout=120)[0]) for process in running]
    assert [answer["numbers"] for answer in answers] == [list(range(5))] * 3
    assert sum(hub.sent_bytes.values()) < 1.5 * 100 * 20_200


# Whole splits


def test_a_whole_split_is_downloaded_into_the_cache_of_the_hub_and_read_offline(hub: HubServer, home: Home) -> None:
    files = {f"scene_parsing/train/000{i}.parquet": shard(range(200 * i, 200 * i + 200)) for i in range(2)}
    serve(hub, files)
    assert home.start("scene_parse_150", "train")["numbers"] == list(range(400))
    assert (
        len(list(home.folder.glob("hub/datasets--zhoubolei--scene_parse_150/snapshots/*/scene_parsing/train/*"))) == 2
    )
    assert home.start("scene_parse_150", "train", HF_HUB_OFFLINE="1")["numbers"] == list(range(400))


def test_a_download_that_was_cut_goes_on_where_it_was(hub: HubServer, home: Home) -> None:
    content = shard(range(100), padding=250_000)
    serve(hub, {SHARD: content})
    hub.cuts = [2**16, 22 * 10**6]  # the footer's request is the first; the client keeps pieces of 10 MB
    assert home.start("scene_parse_150", "train")["numbers"] == list(range(100))
    assert hub.cuts == []
    assert sum(hub.sent_bytes.values()) < 1.2 * len(content)


# Repositories


@pytest.mark.parametrize(
    ("layout", "source"),
    [
        ("data/train-00000-of-00001.parquet", "merve/scene_parse_150"),
        ("scene_parsing/train/0000.parquet", "merve/scene_parse_150"),
        ("train/0000.parquet", "merve/scene_parse_150"),
        ("train.parquet", "merve/scene_parse_150@main"),
        ("rooms/train/0000.parquet", "merve/scene_parse_150:rooms"),
    ],
)
def test_mirrors_in_every_layout_are_read(layout: str, source: str, hub: HubServer, home: Home) -> None:
    serve(hub, {layout: shard(range(3)), "other.txt": b"."}, "datasets/merve/scene_parse_150", "main")
    assert home.start(source, "train")["numbers"] == [0, 1, 2]


def test_a_dataset_without_parquet_is_read_from_the_conversion_of_the_hub(hub: HubServer, home: Home) -> None:
    serve(hub, {"default/train/0000.parquet": shard(range(3))}, "datasets/org/rooms")
    assert home.start("org/rooms", "train")["numbers"] == [0, 1, 2]
    assert home.start("org/rooms", "train", HF_HUB_OFFLINE="1")["numbers"] == [0, 1, 2]


def test_one_of_several_configurations_has_to_be_named(hub: HubServer, home: Home) -> None:
    files = {f"{name}/train/0000.parquet": shard(range(3)) for name in ("rooms", "streets")}
    serve(hub, files, "datasets/org/scenes", "main")
    answer = home.start("org/scenes", "train")
    assert answer["error"] == "ValueError"
    assert (
        "org/scenes has several configurations (rooms, streets); name one, as owner/name:configuration"
        in answer["message"]
    )
    assert "no configuration 'gardens'; it has rooms, streets" in home.start("org/scenes:gardens", "train")["message"]
    assert home.start("org/scenes:streets", "train")["numbers"] == [0, 1, 2]


def test_a_revision_is_read_as_asked_for(hub: HubServer, home: Home) -> None:
    revisions = {"main": {"train.parquet": shard(range(3))}, "v1": {"train.parquet": shard(range(5, 8))}}
    hub.repositories["datasets/org/rooms"] = Repository(revisions)
    assert home.start("org/rooms@v1", "train")["numbers"] == [5, 6, 7]
    commit = hub.repositories["datasets/org/rooms"].commit("v1")
    assert home.start(f"org/rooms@{commit}", "train[:1]")["numbers"] == [5]
    answer = home.start("org/rooms@v2", "train")
    assert (answer["error"], answer["message"]) == ("FileNotFoundError", "dataset 'org/rooms' has no revision 'v2'")


def test_a_private_dataset_takes_a_token(hub: HubServer, home: Home) -> None:
    serve(hub, {"train.parquet": shard(range(300))}, "datasets/org/rooms", "main", private_token="hf_secret")
    answer = home.start("org/rooms", "train[:2]")
    assert answer["error"] == "FileNotFoundError"
    assert "neither a file or folder here nor a dataset on the Hub that this login may read" in answer["message"]
    assert home.start("org/rooms", "train[:2]", HF_TOKEN="hf_secret")["numbers"] == [0, 1]


def test_a_gated_dataset_says_what_to_do(hub: HubServer, home: Home) -> None:
    serve(hub, {"train.parquet": shard(range(3))}, "datasets/org/rooms", "main", gated=True)
    assert "accept its terms on the Hub, then `hf auth login`" in home.start("org/rooms", "train")["message"]


# A Hub that is not well


def test_without_hub_or_cache_the_error_says_what_to_do(hub: HubServer, home: Home) -> None:
    for variables in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        answer = home.start("scene_parse_150", "train", **variables)
        assert answer["error"] == "OSError"
        assert "cannot reach the Hub for dataset 'zhoubolei/scene_parse_150'" in answer["message"]
        assert "connect, or pass a folder of shards" in answer["message"]


def test_a_hub_out_of_reach_is_replaced_by_the_cache_with_a_warning(hub: HubServer, home: Home) -> None:
    serve(hub, {SHARD: shard(range(300))})
    home.start("scene_parse_150", "train[:2]")
    answer = home.start("scene_parse_150", "train[:2]", HF_ENDPOINT="http://127.0.0.1:9")
    assert answer["numbers"] == [0, 1]
    assert "the Hub is out of reach; using zhoubolei/scene_parse_150 as it was listed before" in answer["stderr"]


def test_a_web_page_in_place_of_data_is_not_taken_for_data(hub: HubServer, home: Home) -> None:
    serve(hub, {SHARD: shard(range(300))})
    hub.page = b"<html>Please log in to the wireless network</html>"
    answer = home.start("scene_parse_150", "train[:2]")
    assert answer["error"] == "OSError"
    assert "cannot reach the Hub" in answer["message"]
    hub.page = None
    assert home.start("scene_parse_150", "train[:2]")["numbers"] == [0, 1]


@pytest.mark.parametrize("split", ["train[:2]", "train"])
@pytest.mark.parametrize("trouble", ["cut", "stall", "hang up", "500"])
def test_a_hub_in_trouble_is_named_and_leaves_nothing_behind(
    trouble: str, split: str, hub: HubServer, home: Home
) -> None:
    serve(hub, {SHARD: shard(range(3))})
    hub.cuts = [100] * 50 if trouble == "cut" else []
    hub.stalls = 50 if trouble == "stall" else 0
    hub.refusals = {"hang up": {"parquet": 0}, "500": {"parquet": 500}}.get(trouble, {})
    answer = home.start("scene_parse_150", split, IMPATIENT)
    hub.cuts, hub.stalls, hub.refusals = [], 0, {}
    assert answer["error"] in ("HubError", "OSError", "ValueError"), answer
    assert "zhoubolei/scene_parse_150" in answer["message"]
    assert home.start("scene_parse_150", split)["numbers"] == list(range(3))[: 2 if "[" in split else 3]


def test_a_damaged_shard_is_named(hub: HubServer, home: Home) -> None:
    whole = shard(range(300), padding=1000)
    serve(hub, {SHARD: whole[:-30_000]})
    answer = home.start("scene_parse_150", "train[:2]")
    assert answer["error"] == "ValueError"
    assert f"zhoubolei/scene_parse_150/{SHARD} is not a whole parquet file" in answer["message"]
    serve(hub, {SHARD: b"PAR1" + bytes(40_000) + whole[40_004:]})
    answer = home.start("scene_parse_150", "train[:2]")
    assert answer["error"] == "ValueError"
    assert f"{SHARD} breaks off or is damaged in row group 0" in answer["message"]


def test_a_parquet_file_of_other_columns_is_refused_by_name(hub: HubServer, home: Home) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": ["a"]}), buffer)
    serve(hub, {"train.parquet": buffer.getvalue()}, "datasets/org/text", "main")
    answer = home.start("org/text", "train")
    assert answer["error"] == "ValueError"
    assert "org/text/train.parquet has the columns text; a shard needs image and annotation" in answer["message"]


def test_a_request_that_fails_never_switches_to_another_revision(hub: HubServer, home: Home) -> None:
    revisions = {
        "main": {"train.parquet": shard(range(3))},
        "refs/convert/parquet": {"train.parquet": shard(range(5, 8))},
    }
    hub.repositories["datasets/org/both"] = Repository(revisions)
    hub.refusals = {"GET /api/datasets/org/both": 500}
    answer = home.start("org/both", "train")
    assert answer["error"] == "OSError"
    assert "cannot reach the Hub for dataset 'org/both'" in answer["message"]
    hub.refusals = {}
    assert home.start("org/both", "train")["numbers"] == [0, 1, 2]


def test_an_incomplete_cache_of_another_tool_is_not_taken_for_the_dataset(hub: HubServer, home: Home) -> None:
    commit = "e" * 40
    snapshot = home.folder / f"hub/datasets--zhoubolei--scene_parse_150/snapshots/{commit}/scene_parsing/train"
    snapshot.mkdir(parents=True)
    (snapshot / "0001.parquet").write_bytes(shard(range(3)))
    refs = home.folder / "hub/datasets--zhoubolei--scene_parse_150/refs/refs/convert"
    refs.mkdir(parents=True)
    (refs / "parquet").write_text(commit)
    answer = home.start("scene_parse_150", "train", HF_HUB_OFFLINE="1")
    assert answer["error"] == "ValueError"
    assert "lacks scene_parsing/train/0000.parquet" in answer["message"]


def test_slices_add_up_without_a_further_request(hub: HubServer, home: Home) -> None:
    serve(hub, {SHARD: shard(range(500), padding=5000)})
    home.start("scene_parse_150", "train[:40%]")
    home.start("scene_parse_150", "train[40%:80%]")
    assert home.start("scene_parse_150", "train[:80%]", HF_HUB_OFFLINE="1")["numbers"] == list(range(400))


def test_a_damaged_footer_in_the_cache_is_fetched_anew(hub: HubServer, home: Home) -> None:
    serve(hub, {SHARD: shard(range(300))})
    home.start("scene_parse_150", "train[:2]")
    (footer,) = home.folder.rglob("footer")
    footer.write_bytes(b"")
    assert home.start("scene_parse_150", "train[:2]")["numbers"] == [0, 1]


def test_a_listing_that_points_outside_the_cache_is_refused(hub: HubServer, home: Home) -> None:
    serve(hub, {"../../../../escaped.parquet": shard(range(3))}, "datasets/org/rooms", "main")
    answer = home.start("org/rooms", "train")
    assert answer["error"] == "OSError"
    assert "listing of dataset 'org/rooms' makes no sense" in answer["message"]
    assert not list(home.folder.parent.rglob("escaped*"))


@pytest.mark.slow
def test_the_first_sample_of_a_slice_is_there_within_two_seconds(hub: HubServer, home: Home) -> None:
    content = shard(range(3000), padding=100_000)
    assert len(content) > 300e6  # what a train shard weighs, at the Hub's 100 kB a row
    serve(hub, {SHARD: content})
    started = time.perf_counter()
    answer = home.start("scene_parse_150", "train[:50]")
    assert answer["seconds"] < 2, time.perf_counter() - started

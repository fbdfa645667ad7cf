"""Publishing by the real client to a Hub on this machine: what arrives, what is refused, and what stays here."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import programs
import pytest
from hub_server import Account, HubServer
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id
from programs import DEVNULL, PIPE, ROOT
from safetensors.torch import load

from data.sources.hub import HubSource
from segformer.training.description import RunDescription
from segformer.weights.card import write_card
from segformer.weights.publish import full_id, shareable
from train import configure

TOKEN, READING, FINE = (f"hf_{kind}KnownToThisTestOnly" for kind in ("Writing", "Reading", "FineGrained"))
MODEL = {"config.json", "model.safetensors"}
RUN = MODEL | {
    "preprocessor_config.json",
    "README.md",
    "eval_results.json",
    "classes.csv",
    "confusion.csv",
    "log.jsonl",
    "samples.png",
    "report.html",
    "run.json",
}
OF_THE_HUB = {".gitattributes"}  # which every repository begins with

# huggingface_hub reads its environment when it is imported, so its calls are made in another process.
WORKER = """
import json, sys
from pathlib import Path
from PIL import Image
answers, sys.stdout = sys.stdout, sys.stderr
from segformer import Segformer, Segmenter
from segformer.weights.publish import check_login, publish_run, upload_folder
def push(folder, **arguments):
    return Segformer.from_pretrained(folder).push_to_hub(**arguments)
def load(source, folder, **arguments):
    Segformer.from_pretrained(source, **arguments).save_pretrained(folder)
def segment(source):
    return len(Segmenter.from_pretrained(source)(Image.new("RGB", (40, 50))))
jobs = {
    "check_login": check_login, "push": push, "load": load, "segment": segment,
    "publish_run": lambda folder, repo_id: publish_run(Path(folder), repo_id),
    "upload_folder": lambda folder, repo_id: upload_folder(Path(folder), repo_id),
}
for line in sys.stdin:
    name, arguments = json.loads(line)
    try:
        answer = {"result": jobs[name](**arguments)}
    except Exception as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(answer), file=answers, flush=True)
"""


class Client:
    """Makes calls in another process, logged in as "me", and tells the result or the error."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = programs.start("-c", WORKER, environment=environment, stdin=PIPE, stderr=DEVNULL)

    def call(self, job: str, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([job, arguments], default=str), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


def environment(hub: HubServer, home: Path, **variables: str) -> dict[str, str]:
    """What a program needs that is to meet this Hub, logged in as "me", and no other; without what is set to ""."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE_"))}
    places = {"HF_HOME": str(home), "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "PYTHONPATH": str(ROOT)}
    no_detours = {"NO_PROXY": "127.0.0.1,localhost", "HF_HUB_DISABLE_XET": "1"}
    return {name: value for name, value in {**kept, **places, **no_detours, **variables}.items() if value}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hf_home")


@pytest.fixture(scope="module")
def the_hub() -> Iterator[HubServer]:
    with HubServer() as server:
        server.accounts = {
            TOKEN: Account("me", ("team",)),
            READING: Account("me", ("team",), "read"),
            FINE: Account("me", (), "fineGrained"),
        }
        yield server


@pytest.fixture
def hub(the_hub: HubServer) -> Iterator[HubServer]:
    """The Hub with whatever earlier tests left in it, but no trouble of theirs."""
    the_hub.log.clear()
    yield the_hub
    the_hub.refusals.clear()


@pytest.fixture(scope="module")
def client(the_hub: HubServer, home: Path) -> Iterator[Client]:
    worker = Client(environment(the_hub, home))
    yield worker
    worker.close()


def files_of(hub: HubServer, repository_id: str) -> dict[str, bytes]:
    return hub.repositories[repository_id].revisions["main"]


# A model


def test_a_model_comes_back_from_the_hub_as_it_was_pushed(
    hub: HubServer, client: Client, small_checkpoint: Path, tmp_path: Path
) -> None:
    answer = client.call("push", folder=small_checkpoint, repo_id="me/model")
    assert answer == {"result": f"{hub.url}/me/model"}
    client.call("load", source="me/model", folder=tmp_path)
    for name in MODEL:
        assert (
            (tmp_path / name).read_bytes() == (small_checkpoint / name).read_bytes() == files_of(hub, "me/model")[name]
        )


def test_a_pushed_model_has_the_names_that_transformers_reads(
    hub: HubServer, client: Client, small_checkpoint: Path
) -> None:
    client.call("push", folder=small_checkpoint, repo_id="me/names")
    names = load(files_of(hub, "me/names")["model.safetensors"])
    assert set(files_of(hub, "me/names")) == MODEL | OF_THE_HUB
    assert names
    assert [name for name in names if not name.startswith(("segformer.encoder.", "decode_head."))] == []


def test_weights_go_to_the_storage_for_large_files_and_text_into_the_commit(
    hub: HubServer, client: Client, small_checkpoint: Path
) -> None:
    hub.large_files.clear()
    client.call("push", folder=small_checkpoint, repo_id="me/large")
    assert list(hub.large_files.values()) == [(small_checkpoint / "model.safetensors").read_bytes()]
    assert hub.repositories["me/large"].in_storage == ("model.safetensors",)
    assert hub.log[-1] == "POST /api/models/me/large/commit/main"


def test_a_private_model_opens_with_its_owners_token_only(
    hub: HubServer, client: Client, small_checkpoint: Path, tmp_path: Path
) -> None:
    client.call("push", folder=small_checkpoint, repo_id="me/hidden", private=True)
    assert client.call("load", source="me/hidden", folder=tmp_path, token=False)["error"] == "FileNotFoundError"
    assert client.call("load", source="me/hidden", folder=tmp_path) == {"result": None}


@pytest.mark.parametrize(("repo_id", "whole"), [("alone", "me/alone"), ("team/alone", "team/alone")])
def test_a_name_without_owner_belongs_to_the_login(
    repo_id: str, whole: str, hub: HubServer, client: Client, small_checkpoint: Path
) -> None:
    assert client.call("push", folder=small_checkpoint, repo_id=repo_id) == {"result": f"{hub.url}/{whole}"}
    assert whole in hub.repositories


def test_a_second_push_of_the_same_model_sends_nothing(hub: HubServer, client: Client, small_checkpoint: Path) -> None:
    client.call("push", folder=small_checkpoint, repo_id="me/twice")
    commit = hub.repositories["me/twice"].commit("main")
    hub.log.clear()
    assert client.call("push", folder=small_checkpoint, repo_id="me/twice") == {"result": f"{hub.url}/me/twice"}
    assert hub.repositories["me/twice"].commit("main") == commit
    assert [line for line in hub.log if line.startswith("PUT") or "/commit/" in line] == []


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"repo_id": "stranger/model"}, "OSError", "You don't have the rights to create stranger/model"),
        ({"repo_id": "me/model", "token": "hf_unknown"}, "OSError", "cannot publish me/model: "),
        ({"repo_id": "me/bad--name"}, "ValueError", "'me/bad--name' cannot name a repository on the Hub"),
    ],
    ids=["another owner", "unknown token", "bad name"],
)
def test_a_push_that_fails_says_why_in_one_line(
    arguments: dict[str, str], error: str, words: str, hub: HubServer, client: Client, small_checkpoint: Path
) -> None:
    before = dict(hub.repositories)
    answer = client.call("push", folder=small_checkpoint, **arguments)
    assert answer["error"] == error
    assert words in answer["message"]
    assert "\n" not in answer["message"]
    assert "hf upload" not in answer["message"]  # of a folder that is gone by now
    assert hub.repositories == before


# A run


class Trained:
    """What ``python train.py`` did: its exit code, what it said, and its output folder."""

    def __init__(self, folder: Path, done: subprocess.CompletedProcess[str]) -> None:
        self.folder, self.code, self.stdout, self.stderr = folder, done.returncode, done.stdout, done.stderr

    @property
    def error(self) -> str:
        """The line that a run ends with which fails; it has to be the only one of its kind, without a traceback."""
        (line,) = (line for line in self.stderr.splitlines() if re.match(r"(train\.py: )?error: ", line))
        assert self.stderr.splitlines()[-1] == line
        assert "Traceback" not in self.stderr
        return line

    def present(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


class Trainer:
    """Runs ``python train.py`` for two steps on small data, with ``--push-to-hub``."""

    def __init__(self, hub: HubServer, home: Path, dataset: Path, checkpoint: Path) -> None:
        self.hub, self.home = hub, home
        small = {"--max-steps": 2, "--eval-steps": 2, "--save-steps": 2, "--device": "cpu"}
        data = {"--dataset": dataset, "--split": "train", "--eval-split": "validation", "--checkpoint": checkpoint}
        self._flags = [str(word) for pair in {"--recipe": "guide", **data, **small}.items() for word in pair]

    def train(self, folder: Path, *flags: str, **variables: str) -> Trained:
        self.hub.log.clear()
        words = ["train.py", *self._flags, "--push-to-hub", "--output-dir", folder, *flags]
        done = programs.run(*words, environment=environment(self.hub, self.home, **variables))
        print(done.stdout, done.stderr)  # shown where a test fails
        return Trained(folder, done)


@pytest.fixture(scope="module")
def trainer(the_hub: HubServer, home: Path, small_shards: Path, small_checkpoint: Path) -> Trainer:
    return Trainer(the_hub, home, small_shards, small_checkpoint)


@pytest.fixture(scope="module")
def published(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run of which every step went well."""
    return trainer.train(tmp_path_factory.mktemp("runs") / "halves", "--hub-model-id", "me/halves")


def test_a_published_run_says_where_it_is(published: Trained, hub: HubServer) -> None:
    assert published.code == 0
    assert f"published as {hub.url}/me/halves" in published.stdout.splitlines()
    assert "HTTP Request" not in published.stderr  # addresses in storage are signed, and nobody's to read


def test_of_a_run_exactly_its_own_files_arrive(published: Trained, hub: HubServer) -> None:
    assert published.present() == RUN | {"samples", "checkpoint-2"}
    assert set(files_of(hub, "me/halves")) == RUN | OF_THE_HUB
    for name in RUN:
        assert files_of(hub, "me/halves")[name] == (published.folder / name).read_bytes()


def test_a_published_run_opens_from_the_hub(published: Trained, hub: HubServer, client: Client, tmp_path: Path) -> None:
    client.call("load", source="me/halves", folder=tmp_path)
    for name in MODEL:
        assert (tmp_path / name).read_bytes() == (published.folder / name).read_bytes()
    assert client.call("segment", source="me/halves")["result"] >= 1


def test_what_saves_and_programs_leave_in_the_folder_of_a_run_stays_there(
    published: Trained, hub: HubServer, client: Client, tmp_path: Path
) -> None:
    folder = shutil.copytree(published.folder, tmp_path / "run")
    for name in ("unfinished-checkpoint-4", "removed-checkpoint-1", "abandoned-checkpoint-9", "checkpoint-8/deeper"):
        (folder / name).mkdir(parents=True)
        (folder / name / "model.safetensors").write_bytes(b"weights")
    for name in (".env", "report.html.unfinished", "log.jsonl.unfinished"):
        (folder / name).write_text("left behind")
    client.call("upload_folder", folder=folder, repo_id="me/tidy")
    assert set(files_of(hub, "me/tidy")) == RUN | OF_THE_HUB


def test_the_token_is_in_nothing_that_a_run_writes_or_says(published: Trained, hub: HubServer) -> None:
    written = [path for path in published.folder.rglob("*") if path.is_file()]
    assert published.folder / "checkpoint-2/training_state.pt" in written
    assert [path for path in written if TOKEN.encode() in path.read_bytes()] == []
    assert TOKEN not in published.stdout + published.stderr
    assert [name for name, content in files_of(hub, "me/halves").items() if TOKEN.encode() in content] == []


def test_no_folder_of_this_machine_is_in_what_arrives(
    published: Trained, hub: HubServer, small_shards: Path, small_checkpoint: Path
) -> None:
    folders = [str(path.parent).encode() for path in (published.folder, small_shards, small_checkpoint)]
    arrived = files_of(hub, "me/halves")
    assert [name for name, content in arrived.items() if any(folder in content for folder in folders)] == []
    told = json.loads(arrived["run.json"])["settings"]
    assert (told["dataset"], told["checkpoint"]) == (small_shards.name, small_checkpoint.name)


def test_the_card_of_a_published_run_is_one_of_the_hub(published: Trained, hub: HubServer) -> None:
    card = ModelCard(files_of(hub, "me/halves")["README.md"].decode())
    score = json.loads(files_of(hub, "me/halves")["eval_results.json"])["eval_mean_iou"]
    assert card.data.pipeline_tag == "image-segmentation"
    assert card.data.model_name == "halves"
    first = card.data.eval_results[0]
    assert (first.metric_type, first.metric_value) == ("mean_iou", round(score, 6))
    assert "labels resized to 32 x 32" in first.metric_name
    assert 'Segmenter.from_pretrained("me/halves")' in card.text
    assert "(samples.png)" in card.text


def test_without_a_name_a_run_goes_to_one_like_its_folders(
    published: Trained, trainer: Trainer, hub: HubServer, tmp_path: Path
) -> None:
    run = trainer.train(tmp_path / "of two halves")
    assert f"published as {hub.url}/me/of-two-halves" in run.stdout.splitlines()
    assert 'model="me/of-two-halves"' in files_of(hub, "me/of-two-halves")["README.md"].decode()


# Refused before the first step

REFUSALS: dict[str, tuple[dict[str, str], str, str]] = {
    "no login": ({"HF_TOKEN": ""}, "me/model", "nobody is logged in to the Hub; `hf auth login`, or set HF_TOKEN"),
    "unknown token": ({"HF_TOKEN": "hf_unknown"}, "me/model", "the Hub refuses this login"),
    "offline": ({"HF_HUB_OFFLINE": "1"}, "me/model", "HF_HUB_OFFLINE is set"),
    "no Hub": ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "me/model", "the Hub is out of reach"),
    "bad name": ({}, "me/bad--name", "'me/bad--name' cannot name a repository on the Hub: Cannot have -- or .."),
    "another owner": ({}, "stranger/model", "me cannot write to 'stranger/model'; the owner is one of me, team"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_published_is_refused_before_anything_is_trained_or_overwritten(
    case: str, trainer: Trainer, hub: HubServer, tmp_path: Path
) -> None:
    variables, repo_id, words = REFUSALS[case]
    earlier = {"log.jsonl": "", "README.md": "of an earlier run"}
    for name, text in earlier.items():
        (tmp_path / name).write_text(text)
    before = dict(hub.repositories)
    run = trainer.train(tmp_path, "--hub-model-id", repo_id, "--overwrite-output-dir", **variables)
    assert run.code == 1
    assert words in run.error
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == earlier
    assert "training" not in run.stderr
    assert [line for line in hub.log if line.startswith(("POST", "PUT"))] == []
    assert hub.repositories == before


@pytest.mark.parametrize(
    ("token", "repo_id", "answer"),
    [
        (TOKEN, None, "me"),
        (TOKEN, "model", "me"),
        (TOKEN, "team/model", "me"),
        (TOKEN, "stranger/model", "cannot publish: me cannot write to 'stranger/model'; the owner is one of me, team"),
        (READING, "me/model", "cannot publish: the token of me may only read"),
        (FINE, "me/model", "me"),
        (FINE, "team/model", "me"),  # it may write there, and need not be told of it
        (TOKEN, "a/b/c", "'a/b/c' cannot name a repository on the Hub"),
        (TOKEN, "", "'' cannot name a repository on the Hub"),
    ],
)
def test_a_login_is_refused_only_where_it_is_known_not_to_write(
    token: str, repo_id: str | None, answer: str, hub: HubServer, client: Client
) -> None:
    told = client.call("check_login", repo_id=repo_id, token=token)
    if "cannot" in answer:
        assert told["message"].startswith(answer)
    else:
        assert told == {"result": answer}


def test_a_page_in_place_of_the_hub_is_no_login(hub: HubServer, client: Client) -> None:
    hub.page = b"<html>Please log in to the wireless network</html>"
    answer = client.call("check_login")
    hub.page = None
    assert answer["error"] == "OSError"
    assert answer["message"].startswith("cannot publish: the Hub is out of reach")


# Failed after the last step

TROUBLE = {
    "no right to create": ("POST /api/repos/create", 403, "403 Forbidden"),
    "no right to write": ("/preupload/", 403, "403 Forbidden"),
    "storage refuses": ("PUT /lfs/", 403, " to the Hub (403 Forbidden"),
    "commit breaks": ("/commit/", 500, "500 Internal Server Error"),
    "Hub gone": ("POST /api/repos/create", 0, "Server disconnected"),
    "Hub confused": ("/api/validate-yaml", 502, "502 Bad Gateway"),
}


@pytest.mark.parametrize("case", TROUBLE)
def test_an_upload_that_fails_says_why_and_how_to_do_it_later_but_no_secret(
    case: str, published: Trained, hub: HubServer, client: Client
) -> None:
    part, status, words = TROUBLE[case]
    hub.refusals[part] = status
    hub.large_files.clear()
    answer = client.call("publish_run", folder=published.folder, repo_id=f"me/{case.replace(' ', '-')}")
    assert answer["error"] == "OSError"
    assert words in answer["message"]
    assert f"The run in {published.folder} is whole; `hf upload me/" in answer["message"]
    assert "\n" not in answer["message"]
    assert TOKEN not in answer["message"]


@pytest.mark.parametrize(("part", "status"), [("/commit/", 500), ("POST /api/repos/create", 0)], ids=["500", "gone"])
def test_a_run_whose_upload_fails_is_whole_and_its_message_publishes_it(
    part: str, status: int, trainer: Trainer, hub: HubServer, home: Path, tmp_path: Path
) -> None:
    hub.refusals[part] = status
    hub.large_files.clear()
    run = trainer.train(tmp_path / "a run", "--hub-model-id", f"me/later-{status}")
    assert run.code == 1
    assert run.present() == RUN | {"samples", "checkpoint-2"}
    assert TOKEN not in run.stdout + run.stderr
    command = re.search("`(hf upload .*)` publishes it later", run.error)
    assert command is not None
    hub.refusals.clear()
    done = subprocess.run(shlex.split(command[1]), env=environment(hub, home), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(files_of(hub, f"me/later-{status}")) == RUN | OF_THE_HUB


def test_a_run_that_is_resumed_at_its_end_is_published(
    published: Trained, trainer: Trainer, hub: HubServer, tmp_path: Path
) -> None:
    folder = shutil.copytree(published.folder, tmp_path / "halves")
    run = trainer.train(folder, "--hub-model-id", "me/resumed", "--resume-from-checkpoint", "last")
    assert run.code == 0
    assert set(files_of(hub, "me/resumed")) == RUN | OF_THE_HUB
    assert files_of(hub, "me/resumed")["model.safetensors"] == (published.folder / "model.safetensors").read_bytes()


def test_nothing_that_is_only_scored_can_be_published(trainer: Trainer, tmp_path: Path) -> None:
    run = trainer.train(tmp_path / "scored", "--eval-only", "--hub-model-id", "me/scored")
    assert run.code == 2
    assert "eval_only" in run.error
    assert not run.folder.exists()


@pytest.mark.parametrize(
    "name", ["my run", "--", "a--b", "..x..", "a.-b", "é", "x" * 200, "x" * 95 + "-y", "model.git", "a.git.git", "_"]
)
def test_any_folder_has_a_name_that_the_hub_takes(name: str) -> None:
    validate_repo_id(full_id(None, Path("runs") / name, "me"))
    assert full_id("team/chosen", Path("runs") / name, "me") == "team/chosen"


# The card

RESULTS = {
    "eval_loss": 1.5,
    "eval_mean_iou": 0.1234567,
    "eval_mean_accuracy": 0.25,
    "eval_overall_accuracy": 0.5,
    "eval_per_category_iou": [0.1, 0.2],
    "eval_runtime": 7.0,
}


def card_of(folder: Path, recipe: str = "guide", results: dict[str, Any] | None = None, **settings: Any) -> ModelCard:
    folder.mkdir(exist_ok=True)
    config = configure(recipe, **settings)
    results = {**RESULTS, **(results or {})}
    dataset = HubSource.parse(config.dataset)
    names = [f"class {k}" for k in range(150)]
    run = RunDescription(shareable(asdict(config)), names, parameters=3_752_694, image_size=[512, 640])
    write_card(folder, run, results, dataset)
    return ModelCard.load(folder / "README.md")


def test_the_card_says_which_weights_and_versions_made_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    origin = {"checkpoint": "nvidia/mit-b0", "weights_sha256": "ab" * 32, "versions": {"torch": "2.14"}}
    settings = shareable(asdict(configure("guide")))
    write_card(folder, RunDescription(settings, ["wall"], image_size=[8, 8], provenance=origin), RESULTS)
    text = (folder / "README.md").read_text()
    assert "- Checkpoint: `nvidia/mit-b0, SHA-256 abababababababab`" in text
    assert "- Made: `torch 2.14`" in text


def test_the_card_of_the_guides_run_has_the_metadata_that_the_hub_shows(tmp_path: Path) -> None:
    data = card_of(tmp_path / "guide-1").data.to_dict()
    (index,) = data.pop("model-index")
    assert data == {
        "base_model": "nvidia/mit-b0",
        "datasets": ["zhoubolei/scene_parse_150"],
        "library_name": "transformers",
        "license": "other",
        "license_name": "nvidia-source-code-license-for-segformer",
        "license_link": "https://github.com/NVlabs/SegFormer/blob/master/LICENSE",
        "metrics": ["mean_iou"],
        "pipeline_tag": "image-segmentation",
        "tags": ["segformer", "semantic-segmentation", "vision"],
    }
    (result,) = index["results"]
    assert index["name"] == "guide-1"
    assert result["task"] == {"type": "image-segmentation", "name": "Semantic segmentation"}
    assert result["dataset"] == {
        "name": "zhoubolei/scene_parse_150",
        "type": "zhoubolei/scene_parse_150",
        "config": "scene_parsing",
        "split": "train[:50], 0.2 of it held out",
    }
    assert result["metrics"][0] == {
        "type": "mean_iou",
        "value": 0.123457,
        "name": "mean IoU, labels resized to 640 x 512",
    }
    assert {metric["type"]: metric["value"] for metric in result["metrics"][1:]} == {
        "mean_accuracy": 0.25,
        "overall_accuracy": 0.5,
    }


@pytest.mark.parametrize(
    ("settings", "few", "words"),
    [
        ({}, "labels resized to 640 x 512", "do not compare with those at the photos' own size"),
        ({"eval_resolution": "original"}, "at the photos' own size", "resized to 640 x 512 whatever their shape"),
        ({"recipe": "paper"}, "at the photos' own size and shape", "as published scores are taken"),
        (
            {"eval_flip": True},
            "labels resized to 640 x 512, mean over mirror images",
            "Each prediction is the mean over mirror images.",
        ),
        (
            {"recipe": "paper", "eval_scales": "0.5,1", "eval_flip": True},
            "at the photos' own size and shape, mean over the scales 0.5, 1 and mirror images",
            "Each prediction is the mean over the scales 0.5, 1 and mirror images.",
        ),
        (
            {"recipe": "paper", "eval_scales": "1.0"},
            "at the photos' own size and shape",
            "as published scores are taken",
        ),
    ],
)
def test_every_score_says_by_which_protocol_it_was_taken(
    settings: dict[str, Any], few: str, words: str, tmp_path: Path
) -> None:
    card = card_of(tmp_path, **settings)
    names = [each.metric_name for each in card.data.eval_results]
    assert names == [f"{score}, {few}" for score in ("mean IoU", "mean accuracy", "pixel accuracy")]
    assert words in card.text
    assert ("mean over" in card.text) == ("mean over" in few)


@pytest.mark.parametrize(
    ("checkpoint", "base", "licence"),
    [
        ("nvidia/segformer-b0-finetuned-ade-512-512", True, "NVIDIA Source Code License for SegFormer"),
        ("someone/segformer", True, "descend from `someone/segformer` and keep its licence"),
        ("{tmp}/nvidia/mit-b0", False, "descend from `mit-b0` and keep its licence"),
        (None, False, "trainer's to license"),
    ],
)
def test_base_model_and_licence_follow_the_checkpoint(
    checkpoint: str | None, base: bool, licence: str, tmp_path: Path
) -> None:
    checkpoint = checkpoint and checkpoint.format(tmp=tmp_path)
    card = card_of(tmp_path / "run", checkpoint=checkpoint)
    assert card.data.base_model == (checkpoint if base else None)
    assert (card.data.license_name is not None) == (base and str(checkpoint).startswith("nvidia/"))
    assert card.data.license == "other"
    assert licence in card.text


@pytest.mark.parametrize(
    ("dataset", "listed", "shown", "configuration"),
    [
        ("scene_parse_150", "zhoubolei/scene_parse_150", "zhoubolei/scene_parse_150", "scene_parsing"),
        ("someone/rooms:small@refs/pr/1", "someone/rooms", "someone/rooms", "small"),
        ("toy", None, "toy", None),
        ("{tmp}/scene_parse_150", None, "scene_parse_150", None),
        ("{tmp}/someone/rooms", None, "rooms", None),
        ("{tmp}/rooms/*.parquet", None, "rooms", None),
    ],
)
def test_only_datasets_of_the_hub_are_listed(
    dataset: str, listed: str | None, shown: str, configuration: str | None, tmp_path: Path
) -> None:
    card = card_of(tmp_path / "run", dataset=dataset.format(tmp=tmp_path))
    assert card.data.datasets == ([listed] if listed else None)
    assert card.data.eval_results[0].dataset_name == shown
    assert card.data.eval_results[0].dataset_config == configuration
    assert str(tmp_path) not in card.content


def test_a_folder_here_is_no_repository_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("someone/rooms", "nvidia/mit-b0", "scene_parse_150"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    card = card_of(tmp_path / "run", dataset="someone/rooms", checkpoint="nvidia/mit-b0")
    assert (card.data.datasets, card.data.base_model, card.data.license_name) == (None, None, None)
    assert card_of(tmp_path / "run", dataset="scene_parse_150").data.datasets is None


def test_scores_that_are_no_numbers_are_left_out_of_the_metadata(tmp_path: Path) -> None:
    card = card_of(tmp_path, results={"eval_mean_iou": float("nan")})
    assert [each.metric_type for each in card.data.eval_results] == ["mean_accuracy", "overall_accuracy"]
    assert "| mean IoU | not defined |" in card.text
    nothing = {name: float("nan") for name in ("eval_mean_iou", "eval_mean_accuracy", "eval_overall_accuracy")}
    assert "model-index" not in card_of(tmp_path, results=nothing).data.to_dict()


HOSTILE = [
    "---",
    "a\n---\nb: c",
    ": {}",
    '\'"q"',
    "null",
    "1e3",
    " x ",
    "%x",
    "@x",
    "& y",
    "*z",
    "! z",
    "- a",
    "a: b # c",
    "\ttab",
    "x\u2028y\x85z",
    "\x01\x7f",
    "`a``b`",
    "```",
    "\n```\nimport os",
    "a|b",
    "x](y) ![z](w)",
    "<script>alert(1)<script>",
    "{title} {0} %s",
    "emoji \N{GRINNING FACE}",
    "x" * 200,
]


def read_code_span(text: str) -> str:
    """What CommonMark shows of a text that is one code span."""
    *_, closing = runs = re.findall("`+", text)
    assert runs.count(closing) == 2
    assert text.startswith(closing)
    assert text.endswith(closing)
    inside = text.removeprefix(closing).removesuffix(closing)
    return inside[1:-1] if inside.startswith(" ") and inside.endswith(" ") and inside.strip() else inside


@pytest.mark.parametrize(("scored", "told"), [("validation", "validation"), ("", "train, 0.2 of it held out")])
def test_the_card_names_the_rows_that_were_scored_and_not_how_they_were_chosen(
    scored: str, told: str, tmp_path: Path
) -> None:
    settings = shareable(asdict(configure("own", dataset="rooms", split="train")))
    assert settings["eval_split"] == "auto"
    run = RunDescription(settings, ["wall"], parameters=1, image_size=[8, 8], scored_rows=scored)
    write_card(tmp_path, run, RESULTS)
    assert {result.dataset_split for result in ModelCard.load(tmp_path / "README.md").data.eval_results} == {told}


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_no_name_breaks_the_metadata_or_the_page(name: str, tmp_path: Path) -> None:
    paths = dict.fromkeys(("dataset", "checkpoint", "label_names"), f"/data/{name}")
    card = card_of(tmp_path / name, eval_split=name, **paths)
    line = " ".join("".join(c if c.isprintable() else " " for c in name).split()) or "(empty)"
    result = card.data.eval_results[0]
    told = "data" if "*" in name else line  # a glob is known by the folder it looks in
    assert (card.data.model_name, result.dataset_name, result.dataset_type) == (line, told, told)
    assert result.dataset_split == line
    blocks = re.findall(r"^```python\n(.*?)^```$", card.text, re.DOTALL | re.MULTILINE)
    calls = [node for block in blocks for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Constant)]
    assert [node.value for node in calls if node.value == name] == [name, name]
    prose = re.sub(r"^```python\n(.*?)^```$", "", card.text, flags=re.DOTALL | re.MULTILINE)
    headings = [each for each in prose.splitlines() if each.startswith("#")]
    assert headings[1:] == ["## Results", "## Use", "## Training", "## Licence"]
    assert re.sub(r"\\(?=[^\w\s])", "", headings[0]) == f"# {line}"
    (origin,) = re.findall(r"parameters, fine-tuned from (.*)\.$", prose, re.MULTILINE)
    assert read_code_span(origin) == told
    assert {each.count("|") - each.count("\\|") for each in prose.splitlines() if each.startswith("|")} == {3}


def test_paths_that_are_no_text_are_told_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"run\xff")
    try:
        card = card_of(folder, dataset="/data/rooms\udcff", checkpoint="/data/\udcff", eval_split="train\udcff")
    except OSError:
        pytest.skip("this disk takes no such name")
    assert (card.data.model_name, card.data.eval_results[0].dataset_name) == ("run", "rooms")
    assert 'from_pretrained("run\\udcff")' in card.text


# What strangers may see


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/someone/ade", "ade"),
        ("/home/someone/ade/", "ade"),
        ("/home/someone/ade/train-*.parquet", "ade"),
        ("/home/someone/ade/**/*.parquet", "ade"),
        ("../weights/mit_b0.pth", "mit_b0.pth"),
        ("~/ade", "ade"),
        ("C:\\Users\\someone\\ade", "ade"),
        ("/", "/"),
        ("tests", "tests"),
        ("nvidia/mit-b0", "nvidia/mit-b0"),
        ("someone/rooms:small@refs/convert/parquet", "someone/rooms:small@refs/convert/parquet"),
        ("train[:50]+train[-10%:]", "train[:50]+train[-10%:]"),
        ("0.5,1", "0.5,1"),
    ],
)
def test_of_a_path_only_the_last_name_is_told(text: str, shown: str) -> None:
    assert shareable({"x": text, "y": 3, "z": None}) == {"x": shown, "y": 3, "z": None}

"""Models from the Hub, by the real client, against a server on this machine and against caches on disk."""

import hashlib
import json
import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import programs
import pytest
import safetensors.torch
import torch
from hub_server import IMPATIENT, Files, HubServer, Repository
from programs import DEVNULL, PIPE, ROOT

from segformer import Segformer, SegformerConfig
from segformer.weights import dialects

CONFIG = SegformerConfig(
    depths=(1, 1, 1, 1),
    hidden_sizes=(4, 4, 4, 4),
    num_attention_heads=(1, 1, 1, 1),
    decoder_hidden_size=4,
    num_labels=2,
)
PINNED_B0 = "25ce79d97e6d9d509ed12e17cb2eb89b0a83a2dc"  # the commit of the Hub's own conversion of nvidia/mit-b0

# huggingface_hub reads its environment when it is imported, so every environment has a process of its own.
CLIENT = """
import json, sys
from segformer import ImageProcessor, Segformer
for line in sys.stdin:
    try:
        arguments = json.loads(line)
        if arguments.pop("processor", False):
            answer = {"size": ImageProcessor.from_pretrained(**arguments).size}
        else:
            answer = {"mark": Segformer.from_pretrained(**arguments).decoder.classifier.bias[0].item()}
    except Exception as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(answer), flush=True)
"""


class Client:
    """Loads models in another process and tells the mark that their weights carry, or the error."""

    def __init__(self, home: Path, first: str = "", **environment: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE_"))}
        home.mkdir(exist_ok=True)
        places = {"HF_HOME": str(home), "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
        self._process = programs.start(
            *("-c", first + CLIENT), environment=kept | places | environment, folder=home, stdin=PIPE, stderr=DEVNULL
        )

    def load(self, source: str, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"source": source, **arguments}), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hf_home")


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def online(hub: HubServer, home: Path) -> Iterator[Client]:
    client = Client(home, HF_ENDPOINT=hub.url)
    yield client
    client.close()


@pytest.fixture(scope="module")
def offline(hub: HubServer, home: Path) -> Iterator[Client]:
    """The same cache, without a Hub."""
    client = Client(home, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    yield client
    client.close()


def weights(mark: float) -> dict[str, torch.Tensor]:
    model = Segformer(CONFIG)
    torch.nn.init.constant_(model.decoder.classifier.bias, mark)
    return {name: tensor.contiguous() for name, tensor in dialects.to_v4(model.state_dict()).items()}


def config() -> Files:
    return {"config.json": json.dumps(CONFIG.to_dict()).encode()}


def as_safetensors(mark: float) -> Files:
    return {"model.safetensors": safetensors.torch.save(weights(mark))}


def as_pickle(mark: float) -> Files:
    content = BytesIO()
    torch.save(weights(mark), content)
    return {"pytorch_model.bin": content.getvalue()}


def in_shards(mark: float, name: str) -> Files:
    """The weights in two shards, with their index."""
    tensors = weights(mark)
    stem, suffix = name.split(".")
    files: Files = {}
    weight_map = {}
    for n, names in enumerate((list(tensors)[::2], list(tensors)[1::2]), 1):
        half, file = {each: tensors[each] for each in names}, f"{stem}-{n:05d}-of-00002.{suffix}"
        content = BytesIO(safetensors.torch.save(half) if suffix == "safetensors" else b"")
        if suffix == "bin":
            torch.save(half, content)
        files[file] = content.getvalue()
        weight_map |= dict.fromkeys(names, file)
    return files | {f"{name}.index.json": json.dumps({"weight_map": weight_map}).encode()}


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_in_shards_are_fetched_and_load_again_without_the_hub(
    name: str, hub: HubServer, online: Client, offline: Client
) -> None:
    repository = f"org/shards-{name.partition('.')[0]}"
    hub.repositories[repository] = Repository({"main": config() | in_shards(3, name)})
    assert online.load(repository) == {"mark": 3}
    assert offline.load(repository) == {"mark": 3}


def test_a_shard_that_the_repository_lacks_is_named(hub: HubServer, online: Client) -> None:
    files = in_shards(3, "model.safetensors")
    del files["model-00002-of-00002.safetensors"]
    hub.repositories["org/torn"] = Repository({"main": config() | files})
    assert_not_found(online.load("org/torn"), "names the shard model-00002-of-00002.safetensors", "'org/torn'")


def test_an_index_that_names_a_file_elsewhere_fetches_none(hub: HubServer, online: Client) -> None:
    index = {"model.safetensors.index.json": b'{"weight_map": {"a.weight": "../../secret.bin"}}'}
    hub.repositories["org/escape"] = Repository({"main": config() | index})
    hub.log.clear()
    answer = online.load("org/escape")
    assert answer["error"] == "ValueError"
    assert "'../../secret.bin' as a shard" in answer["message"]
    assert not [entry for entry in hub.log if "secret" in entry]


def test_a_model_without_a_processor_gets_the_default_also_when_the_hub_is_gone(
    hub: HubServer, online: Client, offline: Client
) -> None:
    hub.repositories["org/bare"] = Repository({"main": config() | as_safetensors(1)})
    assert online.load("org/bare", processor=True) == {"size": [512, 512]}
    assert offline.load("org/bare", processor=True) == {"size": [512, 512]}


def test_a_processor_that_was_never_fetched_is_not_made_up_without_the_hub(
    hub: HubServer, online: Client, offline: Client
) -> None:
    own = {"preprocessor_config.json": b'{"size": 640}'}
    hub.repositories["org/unfetched"] = Repository({"main": config() | as_safetensors(1) | own})
    online.load("org/unfetched")
    assert_not_found(offline.load("org/unfetched", processor=True), "no preprocessor_config.json", "'org/unfetched'")
    assert online.load("org/unfetched", processor=True) == {"size": [640, 640]}


def test_safetensors_on_main_are_loaded_and_the_pickle_beside_them_is_not(hub: HubServer, online: Client) -> None:
    hub.repositories["org/both"] = Repository({"main": config() | as_safetensors(1) | as_pickle(2)})
    assert online.load("org/both") == {"mark": 1}


def test_a_second_load_downloads_nothing(hub: HubServer, online: Client) -> None:
    hub.repositories["org/again"] = Repository({"main": config() | as_safetensors(1)})
    online.load("org/again")
    hub.log.clear()
    assert online.load("org/again") == {"mark": 1}
    assert not [entry for entry in hub.log if entry.startswith("GET")]


def test_a_lone_pickle_is_loaded(hub: HubServer, online: Client) -> None:
    hub.repositories["org/pickle"] = Repository({"main": config() | as_pickle(2)})
    assert online.load("org/pickle") == {"mark": 2}


def with_request(author: str, status: str = "open") -> Repository:
    revisions = {"main": config() | as_pickle(2), "refs/pr/4": config() | as_pickle(2) | as_safetensors(4)}
    return Repository(revisions, requests=[(4, author, status)])


def test_a_conversion_request_of_the_hubs_bot_wins_over_the_pickle(hub: HubServer, online: Client) -> None:
    hub.repositories["org/converted"] = with_request("SFconvertbot")
    assert online.load("org/converted") == {"mark": 4}


def test_a_conversion_spares_the_download_of_the_pickle(hub: HubServer, online: Client) -> None:
    hub.repositories["org/spared"] = with_request("SFconvertbot")
    hub.log.clear()
    online.load("org/spared")
    assert not [entry for entry in hub.log if entry.startswith("GET") and "pytorch_model.bin" in entry]


def test_a_conversion_request_of_anybody_else_is_not_used(hub: HubServer, online: Client) -> None:
    hub.repositories["org/stranger"] = with_request("SFconvertb0t")
    assert online.load("org/stranger") == {"mark": 2}


def test_a_closed_conversion_request_is_not_used(hub: HubServer, online: Client) -> None:
    hub.repositories["org/closed"] = with_request("SFconvertbot", status="closed")
    assert online.load("org/closed") == {"mark": 2}


def test_a_request_whose_files_are_gone_leaves_the_pickle(hub: HubServer, online: Client) -> None:
    hub.repositories["org/gone"] = with_request("SFconvertbot")
    del hub.repositories["org/gone"].revisions["refs/pr/4"]
    assert online.load("org/gone") == {"mark": 2}


def test_a_repository_that_lists_no_requests_still_gives_its_pickle(hub: HubServer, online: Client) -> None:
    hub.repositories["org/mute"] = Repository({"main": config() | as_pickle(2)}, discussions_disabled=True)
    assert online.load("org/mute") == {"mark": 2}


def test_an_encoder_without_its_pinned_conversion_still_gives_its_pickle(hub: HubServer, online: Client) -> None:
    hub.repositories["nvidia/mit-b1"] = Repository({"main": config() | as_pickle(2)})
    assert online.load("nvidia/mit-b1") == {"mark": 2}


@pytest.mark.parametrize("trouble", ["page", "cut", "stall", "hang up", "500"])
def test_a_hub_in_trouble_is_named_and_leaves_nothing_behind(trouble: str, hub: HubServer, tmp_path: Path) -> None:
    hub.repositories["org/trouble"] = Repository({"main": config() | as_safetensors(1)})
    client = Client(tmp_path / "home", IMPATIENT, HF_ENDPOINT=hub.url)
    try:
        hub.page = b"<html>Log in to this network</html>" if trouble == "page" else None
        hub.cuts = [100] * 50 if trouble == "cut" else []
        hub.stalls = 50 if trouble == "stall" else 0
        hub.refusals = {"hang up": {"trouble": 0}, "500": {"trouble": 500}}.get(trouble, {})
        answer = client.load("org/trouble")
        hub.page, hub.cuts, hub.stalls, hub.refusals = None, [], 0, {}
        assert answer["error"] in ("OSError", "FileNotFoundError", "ValueError"), answer
        assert "org/trouble" in answer["message"]
        assert client.load("org/trouble") == {"mark": 1}
    finally:
        hub.page, hub.cuts, hub.stalls, hub.refusals = None, [], 0, {}
        client.close()


@pytest.mark.parametrize("by", ["branch", "commit"])
def test_the_revision_asked_for_is_loaded(by: str, hub: HubServer, online: Client) -> None:
    revisions = {"main": config() | as_safetensors(1), "v2": config() | as_safetensors(3)}
    hub.repositories["org/revised"] = repository = Repository(revisions)
    revision = "v2" if by == "branch" else repository.commit("v2")
    assert online.load("org/revised", revision=revision) == {"mark": 3}


def test_a_conversion_of_main_does_not_stand_in_for_another_revision(hub: HubServer, online: Client) -> None:
    hub.repositories["org/branch"] = repository = with_request("SFconvertbot")
    repository.revisions["v2"] = config() | as_pickle(5)
    assert online.load("org/branch", revision="v2") == {"mark": 5}


def test_a_token_opens_a_private_repository(hub: HubServer, online: Client) -> None:
    hub.repositories["org/private"] = Repository({"main": config() | as_safetensors(1)}, private_token="hf_secret")
    assert online.load("org/private", token="hf_secret") == {"mark": 1}


def assert_not_found(answer: dict[str, Any], *words: str) -> None:
    assert answer.get("error") == "FileNotFoundError", answer
    assert [word for word in words if word not in answer["message"]] == [], answer["message"]


def test_a_repository_that_is_not_there_is_named(online: Client) -> None:
    assert_not_found(online.load("org/nothing"), "'org/nothing'", "neither a file or folder here nor a repository")


def test_a_private_repository_is_named_without_its_token(hub: HubServer, online: Client) -> None:
    hub.repositories["org/hidden"] = Repository({"main": config() | as_safetensors(1)}, private_token="hf_secret")
    assert_not_found(online.load("org/hidden"), "'org/hidden'", "this login")


def test_a_gated_repository_says_what_to_do(hub: HubServer, online: Client) -> None:
    hub.repositories["org/gated"] = Repository({"main": config() | as_safetensors(1)}, gated=True)
    assert_not_found(online.load("org/gated"), "'org/gated' is gated", "accept its terms", "hf auth login")


def test_a_revision_that_is_not_there_is_named(hub: HubServer, online: Client) -> None:
    hub.repositories["org/one"] = Repository({"main": config() | as_safetensors(1)})
    assert_not_found(online.load("org/one", revision="v9"), "'org/one'", "'v9'")


@pytest.mark.parametrize("files", [{}, config()], ids=["nothing", "a config alone"])
def test_a_repository_without_a_model_is_named(files: Files, hub: HubServer, online: Client) -> None:
    name = f"org/empty{len(files)}"
    hub.repositories[name] = Repository({"main": files})
    assert_not_found(online.load(name), repr(name), "model.safetensors" if files else "config.json")


@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "local_files_only"])
@pytest.mark.parametrize("kind", ["safetensors", "pickle", "conversion"])
def test_what_was_loaded_once_loads_without_the_hub(
    kind: str, how: str, hub: HubServer, online: Client, offline: Client
) -> None:
    name = f"org/kept-{kind}-{how}"
    hub.repositories[name] = {
        "safetensors": Repository({"main": config() | as_safetensors(1)}),
        "pickle": Repository({"main": config() | as_pickle(2)}),
        "conversion": with_request("SFconvertbot"),
    }[kind]
    first = online.load(name)
    hub.log.clear()
    again = offline.load(name) if how == "HF_HUB_OFFLINE" else online.load(name, local_files_only=True)
    assert (again, hub.log) == (first, [])


@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "local_files_only"])
def test_what_was_never_loaded_is_named_without_the_hub(how: str, online: Client, offline: Client) -> None:
    answer = offline.load("org/unseen") if how == "HF_HUB_OFFLINE" else online.load("org/unseen", local_files_only=True)
    assert_not_found(answer, "'org/unseen'", "out of reach")


def lay_out(cache: Path, repository: str, branch: str, commit: str, files: Files) -> None:
    """Write files the way the client keeps them: blobs by content, snapshots of links, refs."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    for place in ("blobs", "refs", f"snapshots/{commit}"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    (folder / "refs" / branch).parent.mkdir(parents=True, exist_ok=True)
    (folder / "refs" / branch).write_text(commit)
    for name, content in files.items():
        blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (folder / "snapshots" / commit / name).symlink_to(f"../../blobs/{blob.name}")


def test_a_model_in_the_cache_loads_offline(home: Path, offline: Client) -> None:
    lay_out(home / "hub", "org/laid-out", "main", "a" * 40, config() | as_safetensors(6))
    assert offline.load("org/laid-out") == {"mark": 6}


def test_the_pinned_conversion_of_an_encoder_in_the_cache_loads_offline(home: Path, offline: Client) -> None:
    lay_out(home / "hub", "nvidia/mit-b0", "main", "b" * 40, config())
    lay_out(home / "hub", "nvidia/mit-b0", "refs/pr/5", PINNED_B0, as_safetensors(7))
    assert offline.load("nvidia/mit-b0") == {"mark": 7}

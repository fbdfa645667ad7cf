"""Shards in a dataset repository of the Hugging Face Hub: listed, and read whole or by the row groups of a slice.

    scene_parse_150                          the Hub's own parquet form of SceneParse150
    owner/name                               the parquet files of a dataset repository, or those the Hub made of it
    owner/name:configuration@revision        one configuration of it, at a branch, tag or commit

A slice costs the footers of its shards and the row groups that it touches, through ranged requests; a shard of which
most is wanted is downloaded whole into the Hub's cache. What was fetched stays, so a second start asks for no data.
The names of the classes lie beside the shards, or in a repository of their own: owner/name or owner/name/file.json.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import HfApi, constants, hf_hub_download, hf_hub_url, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff  # type: ignore[attr-defined]
from tqdm import tqdm

from data.class_files import CLASS_FILES, MAYBE_CLASS_FILES
from data.sources.cache import cache_folder, make_once
from data.sources.columns import NOT_ASKED, Asked
from data.sources.prepared import PreparedRows, write_rows
from data.sources.shards import DAMAGE, RowGroups, Rows, Shard, damaged

SCENE_PARSE_150 = "scene_parse_150"
HOME = "zhoubolei/scene_parse_150"
_CONVERTED = "refs/convert/parquet"  # where the Hub puts the parquet form of a dataset that has another
_SOURCE = re.compile(r"(?P<name>[\w.-]+/[\w.-]+?)(:(?P<configuration>[\w.-]+))?(@(?P<revision>[\w./-]+))?")
_NAMES_SOURCE = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(/(?P<file>[\w./-]+\.\w+))?(@(?P<revision>[\w./-]+))?")
_COMMIT = re.compile("[0-9a-f]{40}")
_FOOTER_BYTES = 2**16  # asked for at first; more if the footer says that it is longer
_MOST = 0.5  # beyond this share of a shard, fetching it whole is the quicker way
_PATIENCE_SECONDS = 10.0

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HubSource:
    """A dataset repository as the user names it."""

    name: str
    configuration: str | None
    revision: str | None

    @classmethod
    def parse(cls, source: str) -> HubSource | None:
        """The repository that a source names, or None if it can be none, or is something on this machine."""
        if os.path.exists(source):
            return None
        if source in (SCENE_PARSE_150, HOME):
            return cls(HOME, "scene_parsing", _CONVERTED)
        match = _SOURCE.fullmatch(source)
        return cls(match["name"], match["configuration"], match["revision"]) if match else None

    def list_files(self, class_files: Sequence[HubFile] = ()) -> HubFiles | Path:
        """The parquet files at the revision; without one, those of main or, if it has none, of the Hub's conversion.

        Files of class names come with them, those of main with the conversion, too.
        Without network: as they were listed before, or a folder of the Hub's cache. Raises FileNotFoundError for a
        repository or revision that is not there, OSError if it is out of reach and nothing of it is cached.
        """
        try:
            commit, names = self._ask_listing()
        except OutOfReachError as error:
            return self._listed_before(error)
        paths = [name for name in names if name.endswith(".parquet")]
        found = [*class_files, *(HubFile(self.name, commit, name) for name in names if _is_class_file(name))]
        if not paths and self.revision is None:
            return HubSource(self.name, self.configuration, _CONVERTED).list_files(found)
        self._remember(commit, paths, found)
        return HubFiles(self.name, commit, paths, tuple(found))

    def list_class_files(self) -> list[HubFile]:
        """The files of class names at the revision; raises what ``list_files`` does."""
        try:
            commit, names = self._ask_listing()
        except OutOfReachError as error:
            known = self._listed_before(error, of_shards=False)
            return [] if isinstance(known, Path) else list(known.class_files)
        found = [HubFile(self.name, commit, name) for name in names if _is_class_file(name)]
        self._remember(commit, [name for name in names if name.endswith(".parquet")], found)
        return found

    def _ask_listing(self) -> tuple[str, list[str]]:
        """The commit of the revision, and its files in order."""
        try:
            info = HfApi().dataset_info(self.name, revision=self.revision, timeout=_PATIENCE_SECONDS)
        except RevisionNotFoundError as error:
            raise FileNotFoundError(f"dataset {self.name!r} has no revision {self.revision!r}") from error
        except GatedRepoError as error:
            raise FileNotFoundError(
                f"{self.name!r} is gated: accept its terms on the Hub, then `hf auth login`"
            ) from error
        except (RepositoryNotFoundError, HFValidationError) as error:
            rule = "is neither a file or folder here nor a dataset on the Hub that this login may read"
            raise FileNotFoundError(f"{self.name!r} {rule}") from error
        # Each release of the client has another network library, and lets its errors through.
        except Exception as error:
            raise OutOfReachError(type(error).__name__) from error
        commit, names = str(info.sha), sorted(file.rfilename for file in info.siblings or [])
        if not _COMMIT.fullmatch(commit) or any(Path(name).is_absolute() or ".." in Path(name).parts for name in names):
            raise OSError(f"the Hub's listing of dataset {self.name!r} makes no sense: commit {commit!r}")
        return commit, names

    @property
    def _listing(self) -> Path:
        return _cache_of(self.name) / "revisions" / f"{quote(self.revision or 'main', safe='')}.json"

    def _remember(self, commit: str, paths: list[str], class_files: Sequence[HubFile]) -> None:
        """Keep the listing for a start without network; a cache that cannot be written to is no reason to stop."""
        listed = json.dumps({"commit": commit, "paths": paths, "class_files": [list(file) for file in class_files]})
        with suppress(OSError):
            if self._listing.is_file() and self._listing.read_text(encoding="utf-8") == listed:
                return
            self._listing.parent.mkdir(parents=True, exist_ok=True)
            descriptor, unfinished = tempfile.mkstemp(dir=self._listing.parent)
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(listed)
            os.replace(unfinished, self._listing)

    def _listed_before(self, error: OutOfReachError, of_shards: bool = True) -> HubFiles | Path:
        """What is known of the repository without asking the Hub; ``of_shards`` passes over listings that have none."""
        tried = [self] if self.revision else [self, HubSource(self.name, self.configuration, _CONVERTED)]
        for source in tried:
            with suppress(OSError, ValueError, KeyError, TypeError):
                known = json.loads(source._listing.read_text(encoding="utf-8"))
                class_files = tuple(HubFile(*map(str, file)) for file in known.get("class_files", []))
                files = HubFiles(self.name, str(known["commit"]), [str(path) for path in known["paths"]], class_files)
                if of_shards and not files.paths:
                    continue
                if not constants.HF_HUB_OFFLINE:
                    logger.warning("the Hub is out of reach; using %s as it was listed before", self.name)
                return files
        for source in tried:
            with suppress(Exception):
                cached = snapshot_download(
                    self.name, repo_type="dataset", revision=source.revision, local_files_only=True
                )
                logger.warning("the Hub is out of reach; using what its cache holds of %s in %s", self.name, cached)
                return Path(cached)
        raise OSError(
            f"cannot reach the Hub for dataset {self.name!r} ({error}), and nothing of it is cached; "
            f"connect, or pass a folder of shards; none here is called {self.name}"
        ) from error


class OutOfReachError(Exception):
    """The Hub did not answer; what the client said of it is the cause."""


class HubFile(NamedTuple):
    """A file of a repository at one commit."""

    repository: str
    commit: str
    path: str

    def __str__(self) -> str:
        return f"{self.repository}/{self.path}"

    def fetch(self) -> Path:
        """It in the Hub's cache, where it is brought first. Raises OSError where the Hub does not give it."""
        download = partial(hf_hub_download, self.repository, self.path, repo_type="dataset", revision=self.commit)
        return Path(_ask(str(self), download))


def find_class_file(source: str) -> HubFile | None:
    """The file of class names that owner/name or owner/name/file.json means; None if ``source`` means neither.

    Raises FileNotFoundError for a repository that has none, and ValueError with those there are where it has several.
    """
    match = _NAMES_SOURCE.fullmatch(source)
    if match is None or os.path.exists(source):
        return None
    files = HubSource(match["name"], None, match["revision"]).list_class_files()
    chosen = [file for file in files if file.path == match["file"]] if match["file"] else files
    have = ", ".join(file.path for file in files) or "none"
    if not chosen:
        wanted = match["file"] or "file of class names such as id2label.json"
        raise FileNotFoundError(f"dataset {match['name']!r} on the Hub has no {wanted}; it has {have}")
    if len(chosen) > 1:
        raise ValueError(
            f"dataset {match['name']!r} has several files of class names; name one: {match['name']}/<{have}>"
        )
    return chosen[0]


def _is_class_file(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name in (*CLASS_FILES, *MAYBE_CLASS_FILES) or name.endswith("id2label.json")


@dataclass(frozen=True)
class HubFiles:
    """The parquet files of a repository at one commit, and its files of class names."""

    name: str
    commit: str
    paths: list[str]
    class_files: tuple[HubFile, ...] = ()

    def open(self, path: str, asked: Asked = NOT_ASKED) -> Rows:
        """One of the former, for any of its rows."""
        whole = try_to_load_from_cache(self.name, path, repo_type="dataset", revision=self.commit)
        return Shard(Path(whole), asked) if isinstance(whole, str) else HubShard(self.name, self.commit, path, asked)


class HubShard:
    """A parquet file on the Hub, of which this has read the footer; ``ready`` fetches the rows.

    Raises ValueError, naming the file, for one that is no shard, and OSError if it cannot be fetched.
    """

    def __init__(self, repository: str, commit: str, path: str, asked: Asked = NOT_ASKED) -> None:
        self.repository = repository
        self.commit = commit
        self.path = path
        self._folder = _cache_of(repository) / commit / path
        self._metadata = self._read_footer()
        self._asked = asked
        self.groups = RowGroups(self._metadata, str(self), self._fetch_raw, asked)
        self.num_rows: int = self._metadata.num_rows
        self.scene_categories = list(self.groups.columns.scene_categories)
        self.known = self.groups.columns.known

    def __str__(self) -> str:
        return f"{self.repository}/{self.path}"

    def ready(self, rows: Collection[int]) -> Rows:
        """These rows from the cache, where their row groups or the whole shard are brought first."""
        wanted = self.groups.of(rows)
        bytes_of = {group: self._bytes(group) for group in range(len(self.groups.ends))}
        missing = [group for group in wanted if not self._copy(group).exists()]
        if sum(bytes_of[group] for group in missing) > _MOST * sum(bytes_of.values()):
            return Shard(HubFile(self.repository, self.commit, self.path).fetch(), self._asked).ready(rows)
        for group in tqdm(missing, f"fetching {self.path}", leave=False, disable=None, unit="row group"):
            make_once(self._copy(group), partial(self._write, group), bytes_of[group])
        return FetchedRows(self, wanted)

    def row(self, row: int) -> dict[str, Any]:
        """One row, fetched if it is not there; whoever wants several calls ``ready`` first."""
        return self.ready([row]).row(row)

    def where(self, row: int) -> str:
        """Row and file, for messages."""
        return f"row {row} in {self}"

    def open_copy(self, group: int) -> PreparedRows:
        """A row group that was fetched."""
        return PreparedRows(self._copy(group), str(self), self.scene_categories)

    def _copy(self, group: int) -> Path:
        key = self.groups.columns.key
        return self._folder / f"group-{group}{key and '-' + key}.arrow"

    def _read_footer(self) -> pq.FileMetaData:
        path = make_once(self._folder / "footer", self._fetch_footer)
        try:
            return pq.read_metadata(path)
        except DAMAGE:  # of the cache's file, not the Hub's
            path.unlink()
            return pq.read_metadata(make_once(path, self._fetch_footer))

    def _fetch_footer(self, path: Path) -> None:
        remote = RemoteFile(self.repository, self.commit, self.path)
        try:
            pq.read_metadata(pa.PythonFile(remote)).write_metadata_file(path)
        except DAMAGE as error:
            raise damaged(f"{self} is not a whole parquet file", error) from error

    def _write(self, group: int, path: Path) -> None:
        write_rows(path, [self._fetch(group)])

    def _fetch(self, group: int) -> pa.Table:
        return self.groups.columns.arrange(self._fetch_raw(group, self.groups.columns.names))

    def _fetch_raw(self, group: int, columns: list[str]) -> pa.Table:
        remote = RemoteFile(self.repository, self.commit, self.path, self._span(group))
        try:
            file = pq.ParquetFile(pa.PythonFile(remote), metadata=self._metadata)
            return file.read_row_group(group, columns=columns)
        except DAMAGE as error:
            raise damaged(f"{self} breaks off or is damaged in row group {group}", error) from error

    def _bytes(self, group: int) -> int:
        start, stop = self._span(group)
        return stop - start

    def _span(self, group: int) -> tuple[int, int]:
        """The bytes of the file, from and to, that a row group lies in."""
        part = self._metadata.row_group(group)
        columns = [part.column(i) for i in range(part.num_columns)]
        starts = [min(c.data_page_offset, c.dictionary_page_offset or c.data_page_offset) for c in columns]
        ends = [start + c.total_compressed_size for start, c in zip(starts, columns, strict=True)]
        return min(starts), max(ends)


class FetchedRows:
    """Rows of a shard on the Hub whose row groups were fetched."""

    def __init__(self, shard: HubShard, groups: list[int]) -> None:
        self.shard = shard
        self.num_rows = shard.num_rows
        self.scene_categories, self.known = shard.scene_categories, shard.known
        self._copies = {group: shard.open_copy(group) for group in groups}

    def ready(self, rows: Collection[int]) -> Rows:
        """These rows, of which some may still have to be fetched."""
        return self.shard.ready(rows)

    def row(self, row: int) -> dict[str, Any]:
        """The columns of one row of a fetched row group."""
        group, place = self.shard.groups.place(row)
        return self._copies[group].row(place)

    def where(self, row: int) -> str:
        """Row and file, for messages."""
        return self.shard.where(row)


class RemoteFile(io.RawIOBase):
    """A file on the Hub as pyarrow reads one: each span in one ranged request, tried again where the connection is cut.

    The first request brings ``span``, from and to, or the end of the file, with which the Hub tells its size.
    """

    def __init__(self, repository: str, commit: str, path: str, span: tuple[int, int] | None = None) -> None:
        self._name = f"{repository}/{path}"
        self._url = hf_hub_url(repository, path, repo_type="dataset", revision=commit)
        self._spans: list[tuple[int, bytes]] = []
        self._position = 0
        self.size = 0
        self.fetch(*span) if span else self.fetch(-_FOOTER_BYTES, 0)

    def fetch(self, start: int, stop: int) -> None:
        """Bring the bytes from ``start`` to ``stop``, or the last ones if ``start`` is below 0."""
        wanted = f"bytes={start}-{stop - 1}" if start >= 0 else f"bytes={start}"
        headers = build_hf_headers() | {"range": wanted, "accept-encoding": "identity"}
        patience = constants.HF_HUB_DOWNLOAD_TIMEOUT  # or a Hub that stalls holds up whoever waits for the same file

        def request() -> Any:
            response = http_backoff("GET", self._url, headers=headers, timeout=patience)
            hf_raise_for_status(response)
            return response

        answer = _ask(self._name, request)
        told, content = answer.headers.get("content-range", ""), answer.content
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", told)
        first, self.size = (int(match[1]), int(match[3])) if match else (0, len(content))  # all of it, unasked
        asked_for = (start, stop) if start >= 0 else (max(0, self.size + start), self.size)
        if first > asked_for[0] or first + len(content) < asked_for[1]:
            raise HubError(
                f"the Hub sent {len(content)} bytes of {self._name} for {wanted}, which are others or too few"
            )
        self._spans.append((first, content))

    def readinto(self, buffer: Any) -> int:
        start, length = self._position, min(len(buffer), self.size - self._position)
        for first, content in self._spans:
            if first <= start and start + length <= first + len(content):
                break
        else:
            self.fetch(start, start + length)
            first, content = self._spans[-1]
        buffer[:length] = content[start - first : start - first + length]
        self._position += length
        return length

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


class HubError(OSError):
    """The Hub did not give what it was asked for."""


def _ask(name: str, request: Callable[[], T]) -> T:
    """What the Hub answers; OSError in one line, without the signatures of addresses, where it does not."""
    try:
        return request()
    # Each release of the client has another network library, and lets its errors through.
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise HubError(f"cannot fetch {name} from the Hub: " + re.sub(r"\?\S+", "", said)[:300]) from error


def _cache_of(repository: str) -> Path:
    return cache_folder() / "hub" / repository.replace("/", "--")

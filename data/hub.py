"""Shards in a dataset repository of the Hugging Face Hub: listed, and read whole or by the row groups of a slice.

    scene_parse_150                          the Hub's own parquet form of SceneParse150
    owner/name                               the parquet files of a dataset repository, or those the Hub made of it
    owner/name:configuration@revision        one configuration of it, at a branch, tag or commit

A slice costs the footers of its shards and the row groups that it touches, through ranged requests; a shard of which
most is wanted is downloaded whole into the Hub's cache. What was fetched stays, so a second start asks for no data.
"""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import HfApi, HfFileSystem, constants, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from tqdm import tqdm

from data.cache import cache_folder, make_once
from data.prepared import PreparedRows, write_rows
from data.shards import DAMAGE, RowGroups, Rows, Shard

SCENE_PARSE_150 = "scene_parse_150"
_HOME = "zhoubolei/scene_parse_150"
_CONVERTED = "refs/convert/parquet"  # where the Hub puts the parquet form of a dataset that has another
_SOURCE = re.compile(r"(?P<name>[\w.-]+/[\w.-]+?)(:(?P<configuration>[\w.-]+))?(@(?P<revision>[\w./-]+))?")
_FOOTER_BYTES = 2**16  # asked for at first; more if the footer says that it is longer
_MOST = 0.5  # beyond this share of a shard, fetching it whole is the quicker way
_PATIENCE_SECONDS = 10.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HubSource:
    """A dataset repository as the user names it."""

    name: str
    configuration: str | None
    revision: str | None

    @classmethod
    def parse(cls, source: str) -> HubSource | None:
        """The repository that a source names, or None if it can be none."""
        if source in (SCENE_PARSE_150, _HOME):
            return cls(_HOME, "scene_parsing", _CONVERTED)
        match = _SOURCE.fullmatch(source)
        return cls(match["name"], match["configuration"], match["revision"]) if match else None

    def list_files(self) -> HubFiles | Path:
        """The parquet files at the revision, or at the Hub's conversion if it has none.

        Without network: as they were listed before, or a folder of the Hub's cache. Raises FileNotFoundError for a
        repository or revision that is not there, OSError if it is out of reach and nothing of it is cached.
        """
        for revision in [self.revision] if self.revision else ["main", _CONVERTED]:
            try:
                listed = self._list(revision)
            except OSError as error:
                problem = error
                continue
            if isinstance(listed, Path) or listed.paths:
                return listed
            problem = FileNotFoundError(f"dataset {self.name!r} has no *.parquet at revision {revision!r}")
        raise problem

    def _list(self, revision: str) -> HubFiles | Path:
        try:
            info = HfApi().dataset_info(self.name, revision=revision, timeout=_PATIENCE_SECONDS)
        except RevisionNotFoundError as error:
            raise FileNotFoundError(f"dataset {self.name!r} has no revision {revision!r}") from error
        except GatedRepoError as error:
            raise FileNotFoundError(
                f"{self.name!r} is gated: accept its terms on the Hub, then `hf auth login`"
            ) from error
        except (RepositoryNotFoundError, HFValidationError) as error:
            rule = "is neither a file or folder here nor a dataset on the Hub that this login may read"
            raise FileNotFoundError(f"{self.name!r} {rule}") from error
        except (
            Exception
        ) as error:  # each release of the client has another network library, and lets its errors through
            return self._listed_before(revision, error)
        paths = sorted(file.rfilename for file in info.siblings or [] if file.rfilename.endswith(".parquet"))
        self._remember(revision, info.sha or revision, paths)
        return HubFiles(self.name, info.sha or revision, paths)

    def _listing(self, revision: str) -> Path:
        return _cache_of(self.name) / "revisions" / f"{revision}.json"

    def _remember(self, revision: str, commit: str, paths: list[str]) -> None:
        listing = self._listing(revision)
        listing.parent.mkdir(parents=True, exist_ok=True)
        unfinished = listing.with_name(f"{listing.name}.unfinished")
        unfinished.write_text(json.dumps({"commit": commit, "paths": paths}), encoding="utf-8")
        unfinished.replace(listing)

    def _listed_before(self, revision: str, error: Exception) -> HubFiles | Path:
        """What is known of the repository without asking the Hub."""
        if self._listing(revision).is_file():
            known = json.loads(self._listing(revision).read_text(encoding="utf-8"))
            if not constants.HF_HUB_OFFLINE:
                logger.warning("the Hub is out of reach; using %s as it was listed before", self.name)
            return HubFiles(self.name, known["commit"], known["paths"])
        try:
            return Path(snapshot_download(self.name, repo_type="dataset", revision=revision, local_files_only=True))
        except Exception:
            raise OSError(
                f"cannot reach the Hub for dataset {self.name!r} ({type(error).__name__}), and nothing of its revision "
                f"{revision} is cached; connect, or pass a folder of shards"
            ) from error


@dataclass(frozen=True)
class HubFiles:
    """The parquet files of a repository at one commit."""

    name: str
    commit: str
    paths: list[str]

    def open(self, path: str) -> Rows:
        """One of them, for any of its rows."""
        whole = try_to_load_from_cache(self.name, path, repo_type="dataset", revision=self.commit)
        return Shard(Path(whole)) if isinstance(whole, str) else HubShard(self.name, self.commit, path)


class HubShard:
    """A parquet file on the Hub, of which this has read the footer; ``ready`` fetches the rows.

    Raises ValueError, naming the file, for one that is no shard, and OSError if it cannot be fetched.
    """

    def __init__(self, repository: str, commit: str, path: str) -> None:
        self.repository = repository
        self.commit = commit
        self.path = path
        self._folder = _cache_of(repository) / commit / path
        make_once(self._folder / "footer", self._fetch_footer)
        self._metadata = pq.read_metadata(self._folder / "footer")
        self.groups = RowGroups(self._metadata, str(self))
        self.num_rows: int = self._metadata.num_rows
        self.scene_categories = self.groups.scene_categories

    def __str__(self) -> str:
        return f"{self.repository}/{self.path}"

    def ready(self, rows: Collection[int]) -> Rows:
        """These rows from the cache, where their row groups or the whole shard are brought first."""
        wanted = self.groups.of(rows)
        if not wanted:
            return self
        share = sum(self._span(group)[1] - self._span(group)[0] for group in wanted) / self._span()[1]
        if share > _MOST:
            path = hf_hub_download(self.repository, self.path, repo_type="dataset", revision=self.commit)
            return Shard(Path(path)).ready(rows)
        missing = [group for group in wanted if not self._copy(group).exists()]
        for group in tqdm(missing, f"fetching {self.path}", leave=False, disable=None, unit="row group"):
            start, stop = self._span(group)
            make_once(self._copy(group), partial(self._write, group), stop - start)
        return FetchedRows(self, wanted)

    def row(self, row: int) -> dict[str, Any]:
        """One row, fetched if it is not there; whoever wants several calls ``ready`` first."""
        return self.ready([row]).row(row)

    def where(self, row: int) -> str:
        """Row and file, for messages."""
        return f"row {row} in {self}"

    def open_copy(self, group: int) -> PreparedRows:
        """A row group that was fetched."""
        first = self.groups.ends[group - 1] if group else 0
        return PreparedRows(self._copy(group), str(self), self.scene_categories, first)

    def _copy(self, group: int) -> Path:
        return self._folder / f"group-{group}.arrow"

    def _fetch_footer(self, path: Path) -> None:
        remote = RemoteFile(self.repository, self.commit, self.path)
        remote.fetch(max(0, remote.size - _FOOTER_BYTES), remote.size)
        try:
            pq.read_metadata(pa.PythonFile(remote)).write_metadata_file(path)
        except DAMAGE as error:
            raise ValueError(f"{self} is not a whole parquet file: {error}") from error

    def _write(self, group: int, path: Path) -> None:
        write_rows(path, [self._fetch(group)])

    def _fetch(self, group: int) -> pa.Table:
        remote = RemoteFile(self.repository, self.commit, self.path)
        remote.fetch(*self._span(group))
        try:
            return pq.ParquetFile(pa.PythonFile(remote), metadata=self._metadata).read_row_group(
                group, columns=self.groups.columns
            )
        except DAMAGE as error:
            raise ValueError(f"{self} breaks off or is damaged in row group {group}: {error}") from error

    def _span(self, group: int | None = None) -> tuple[int, int]:
        """The bytes of the file, from and to, that a row group lies in; of all row groups if none is named."""
        groups = range(self._metadata.num_row_groups) if group is None else [group]
        parts = [self._metadata.row_group(i) for i in groups]
        columns = [part.column(i) for part in parts for i in range(part.num_columns)]
        starts = [min(c.data_page_offset, c.dictionary_page_offset or c.data_page_offset) for c in columns]
        ends = [start + c.total_compressed_size for start, c in zip(starts, columns, strict=True)]
        return min(starts), max(ends)


class FetchedRows:
    """Rows of a shard on the Hub whose row groups were fetched."""

    def __init__(self, shard: HubShard, groups: list[int]) -> None:
        self.shard = shard
        self.num_rows = shard.num_rows
        self.scene_categories = shard.scene_categories
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
    """A file on the Hub as pyarrow reads one, each fetched span in one ranged request and read from memory then."""

    def __init__(self, repository: str, commit: str, path: str) -> None:
        self._path = f"datasets/{repository}@{commit}/{path}"
        self._files = HfFileSystem()
        self._spans: list[tuple[int, bytes]] = []
        self._position = 0
        self.size: int = self._call(lambda: self._files.info(self._path)["size"])

    def fetch(self, start: int, stop: int) -> None:
        """Bring the bytes from ``start`` to ``stop``; a connection that is cut is tried again."""
        content = self._call(lambda: self._files.cat_file(self._path, start, stop, cache_type="none"))
        if len(content) != stop - start:
            raise OSError(f"the Hub sent {len(content)} bytes of {self._path} where {stop - start} were asked for")
        self._spans.append((start, content))

    def _call(self, ask: Any) -> Any:
        try:
            return ask()
        except FileNotFoundError:
            raise
        except (
            Exception
        ) as error:  # each release of the client has another network library, and lets its errors through
            first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise OSError(f"cannot fetch {self._path} from the Hub: {first_line}") from error

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


def _cache_of(repository: str) -> Path:
    return cache_folder() / "hub" / repository.replace("/", "--")

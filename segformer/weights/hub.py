"""Where the files of a model are: in a folder, or in a repository of the Hugging Face Hub and its local cache."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from segformer.files import WEIGHTS_NAME
from segformer.weights.formats import INDEX_SUFFIX, SUFFIXES, shard_names

PICKLE_NAME = "pytorch_model.bin"

logger = logging.getLogger(__name__)

# The encoders have no safetensors file on main; these are the commits of the Hub's own conversion requests.
_CONVERSIONS = {
    "nvidia/mit-b0": "25ce79d97e6d9d509ed12e17cb2eb89b0a83a2dc",
    "nvidia/mit-b1": "44575a0572f5374ed1e5b4e46ec8276222f6ffe8",
    "nvidia/mit-b2": "d15ed1f9ae92346f6a6067dbb490a62494ae0d28",
}
_CONVERSION_AUTHOR = "SFconvertbot"
_REPOSITORY = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def is_repository(source: str) -> bool:
    """Whether a source reads owner/name, as a repository of the Hub is called, and is nothing on this machine."""
    if "/" not in source or os.path.exists(source):
        return False
    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    return True


@dataclass(frozen=True)
class ModelFiles:
    """The files behind one ``source``: a local folder, or a Hub repository at a revision.

    Raises FileNotFoundError, naming what was tried, when there is no such folder or repository.
    """

    source: str
    revision: str | None = None
    token: str | bool | None = None
    local_files_only: bool = False

    @property
    def folder(self) -> Path | None:
        """The local folder, or None for a Hub repository."""
        if Path(self.source).is_dir():
            return Path(self.source)
        if not _REPOSITORY.fullmatch(self.source):
            raise FileNotFoundError(f"no file or folder {self.source!r}, and it is not a Hub id such as nvidia/mit-b0")
        return None

    def find(self, name: str, revision: str | None = None) -> Path | None:
        """The local path of one file, downloaded if need be; None when the source has no such file."""
        try:
            return self._fetch(name, revision)
        except EntryNotFoundError:  # also: offline and not in the cache
            return None

    def lacks(self, name: str) -> bool:
        """Whether it is certain that the source has no such file: offline, only if it was once asked for in vain."""
        try:
            return self._fetch(name) is None
        except LocalEntryNotFoundError:
            known = try_to_load_from_cache(self.source, name, revision=self.revision)
            return known is not None and not isinstance(known, str)
        except EntryNotFoundError:
            return True

    def _fetch(self, name: str, revision: str | None = None) -> Path | None:
        """As ``find``, but raises EntryNotFoundError for a file that a repository does not have."""
        if self.folder is not None:
            path = self.folder / name
            return path if path.is_file() else None
        try:
            fetched = hf_hub_download(
                self.source,
                name,
                revision=revision or self.revision,
                token=self.token,
                local_files_only=self.local_files_only,
            )
        except EntryNotFoundError:
            raise
        except RevisionNotFoundError as error:
            if revision is not None:  # a conversion request that is gone: there are other places to look
                return None
            raise FileNotFoundError(f"{self.source!r} has no revision {self.revision!r}") from error
        except GatedRepoError as error:
            terms = f"{self.source!r} is gated: accept its terms on the Hub, then `hf auth login`"
            raise FileNotFoundError(terms) from error
        except (RepositoryNotFoundError, HFValidationError) as error:
            rule = "is neither a file or folder here nor a repository on the Hub that this login may read"
            raise FileNotFoundError(f"{self.source!r} {rule}") from error
        except Exception as error:  # each release of the client has errors of its own, and lets those of others through
            raise OSError(f"cannot fetch {name} of {self.source!r} from the Hub: {_first_line(error)}") from error
        return Path(fetched)

    def find_weights(self) -> Path:
        """The weights: a file, or the index of several, all of which are then beside it.

        safetensors come before a pickle, a conversion request of the Hub's own bot before a pickle too.
        """
        if path := self._find_whole(WEIGHTS_NAME):
            return path
        if self.folder is None:
            for commit in self._conversions():
                if path := self.find(WEIGHTS_NAME, revision=commit):
                    return path
        if path := self._find_whole(PICKLE_NAME):
            return path
        raise FileNotFoundError(f"no {WEIGHTS_NAME} and no {PICKLE_NAME} in {self.describe()}{self._others()}")

    def _find_whole(self, name: str) -> Path | None:
        """A file of weights or, where it is in pieces, its index."""
        if path := self.find(name):
            return path
        index = self.find(name + INDEX_SUFFIX)
        for shard in shard_names(index) if index else ():
            if self.find(shard) is None:
                raise FileNotFoundError(f"{index} names the shard {shard}, which is not in {self.describe()}")
        return index

    def _others(self) -> str:
        """The files that may hold weights under names of their own."""
        names = sorted(path.name for path in self.folder.iterdir() if path.suffix in SUFFIXES) if self.folder else []
        return f"; to load {names[0]}, name the file itself" if names else ""

    def describe(self) -> str:
        """What the source is, for messages."""
        if self.folder is not None:
            return f"folder {self.source}"
        return f"Hub repository {self.source!r} (or the Hub is out of reach and the cache does not hold it)"

    def _conversions(self) -> list[str]:
        """Revisions that may hold a safetensors copy of this repository's main branch."""
        if self.revision not in (None, "main"):
            return []
        if self.source in _CONVERSIONS:
            return [_CONVERSIONS[self.source]]
        if self.local_files_only:
            return self._cached_conversions()
        try:
            requests = HfApi(token=self.token).get_repo_discussions(
                self.source, author=_CONVERSION_AUTHOR, discussion_type="pull_request", discussion_status="open"
            )
            # A mirror may not know these filters, and anybody may open a request.
            return [
                f"refs/pr/{request.num}"
                for request in requests
                if request.author == _CONVERSION_AUTHOR and request.is_pull_request and request.status == "open"
            ]
        except Exception as error:
            logger.info("no list of conversion requests for %s: %s", self.source, _first_line(error))
            return self._cached_conversions()

    def _cached_conversions(self) -> list[str]:
        """The requests whose files were fetched before, newest first; only trusted ones ever are."""
        repository = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=self.source, repo_type="model")
        numbers = [int(path.name) for path in (repository / "refs/refs/pr").glob("*") if path.name.isdigit()]
        return [f"refs/pr/{number}" for number in sorted(numbers, reverse=True)]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

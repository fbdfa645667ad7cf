"""To a repository of the Hugging Face Hub: a model, or a finished run and what of it strangers may see.

What can be known beforehand is asked before the first step (``check_login``), as the guide's Trainer does; an upload
that fails in the end costs no more than the upload, and says which command does it later.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from segformer.weights.hub import is_repository

_BELOW = "*/*"  # checkpoints and samples: all that lies in a folder of the run's folder
_UNWANTED = (_BELOW, ".*", "*.unfinished")
_SECRETS = re.compile(r"(?<=Bearer )[^\s'\"]+|\bhf_\w{16,}|(?<=//)[^/\s@]+(?=@)")
_OFFLINE = "HF_HUB_OFFLINE is set; unset it to upload anything"
_LOG_IN = "`hf auth login`, or set HF_TOKEN"


def check_login(repo_id: str | None = None, token: str | bool | None = None) -> str:
    """The name of the account that is logged in, which may upload to ``repo_id`` as far as can be told beforehand.

    Raises ValueError for a name that the Hub does not take, and OSError where nobody is logged in, where this login is
    known not to write there, or where there is no way to the Hub. It makes nothing there.
    """
    if repo_id is not None:
        _check_name(repo_id)
    about = _account(token)
    account, role = str(about["name"]), ((about.get("auth") or {}).get("accessToken") or {}).get("role")
    if role == "read":
        raise OSError(f"cannot publish: the token of {account} may only read; make one that may write, {_LOG_IN}")
    owners = [account, *(str(each["name"]) for each in about.get("orgs") or [])]
    owner = (repo_id or "").rpartition("/")[0]
    known = [each.lower() for each in owners]
    if role == "write" and owner and owner.lower() not in known:  # tokens of other kinds need not list all they may
        raise OSError(f"cannot publish: {account} cannot write to {repo_id!r}; the owner is one of {', '.join(owners)}")
    return account


def full_id(repo_id: str | None, folder: Path, account: str) -> str:
    """The repository "owner/name" that ``repo_id`` means to an account; without it, one named after the folder."""
    name = repo_id or _name_like(folder)
    return name if "/" in name else f"{account}/{name}"


def upload_folder(
    folder: Path,
    repo_id: str,
    private: bool | None = None,
    token: str | bool | None = None,
    message: str = "Upload SegFormer",
) -> str:
    """Upload the files of a folder, but no folder in it, and return the repository's address; it is made if need be.

    ``repo_id`` is "name" or "owner/name". Raises ValueError for a name that the Hub does not take, and OSError where
    the upload fails; the folder stays as it is.
    """
    _check_name(repo_id)
    if constants.HF_HUB_OFFLINE:
        raise OSError(f"cannot publish {repo_id}: {_OFFLINE}")
    api = HfApi(token=token)
    try:
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        unwanted = list(_UNWANTED)  # the client adds to it
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message=message, ignore_patterns=unwanted)
    except Exception as error:  # each release of the client has errors of its own, and lets those of others through
        raise OSError(f"cannot publish {repo_id}: {type(error).__name__}: {_reason(error)}") from error
    return str(made)


def publish_run(folder: Path, repo_id: str) -> str:
    """Upload a finished run, as ``upload_folder`` does; where that fails, the OSError says how to do it later."""
    try:
        return upload_folder(folder, repo_id)
    except (OSError, ValueError) as error:
        command = shlex.join(["hf", "upload", repo_id, str(folder), ".", "--exclude", _BELOW])
        raise OSError(f"{error}. The run in {folder} is whole; `{command}` publishes it later") from error


def shareable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as strangers may see them: of a path on this machine only the last folder or file."""
    return {name: _last_name(value) if isinstance(value, str) else value for name, value in settings.items()}


def _last_name(text: str) -> str:
    repository = re.split("[:@]", text, maxsplit=1)[0]  # of a dataset, a configuration and a revision may follow
    if not re.search(r"[/\\]", text) or (is_repository(repository) and not os.path.exists(text)):
        return text
    names = [name for name in re.split(r"[/\\]", os.path.normpath(text)) if name not in ("", ".", "..", "~")]
    if not os.path.exists(text):  # a glob of files is known by their folder
        names = [name for name in names if "*" not in name] or names
    return names[-1] if names else "/"


def _name_like(folder: Path) -> str:
    """The folder's name as the Hub takes it: ASCII letters, digits, _ and single - or . between, 96 in all at most."""
    name = re.sub(r"[^A-Za-z0-9_.]+", "-", folder.resolve().name)
    name = re.sub(r"[-.]{2,}", "-", name)[:96].strip("-.")
    return re.sub(r"(\.git)+$", "", name) or "segformer"


def _check_name(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} cannot name a repository on the Hub: {_reason(error)}") from error


def _account(token: str | bool | None) -> dict[str, Any]:
    if constants.HF_HUB_OFFLINE:
        raise OSError(f"cannot publish: {_OFFLINE}")
    try:
        account = HfApi(token=token).whoami()
        return {**account, "name": account["name"]}  # a page that is no answer of the Hub has none
    except LocalTokenNotFoundError as error:
        raise OSError(f"cannot publish: nobody is logged in to the Hub; {_LOG_IN}") from error
    except Exception as error:
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
            raise OSError(f"cannot publish: the Hub refuses this login ({_reason(error)}); {_LOG_IN}") from error
        raise OSError(f"cannot publish: the Hub is out of reach ({type(error).__name__}: {_reason(error)})") from error


def _reason(error: BaseException) -> str:
    """What went wrong in one line, the cause with it where the client only says that something did; no secrets."""
    lines = [line for line in str(error).splitlines() if not line.startswith("For more information check:")]
    said = " ".join(" ".join(lines).split()).rstrip(".") or type(error).__name__
    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        said = f"{said} ({_reason(error.__cause__)})"
    return _SECRETS.sub("***", said)

"""An exported folder onto a hub, by huggingface_hub."""

import json
import os
import re
from pathlib import Path
from typing import Any

from distill_tune.config.files import is_model_folder, nothing_at
from distill_tune.errors import UserError, one_line
from distill_tune.export.record import FAILED, read_record
from distill_tune.secrets import hide_secrets

_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_ADAPTER, _BASE = "adapter_config.json", "base_model_name_or_path"
_TEXTS = (".json", ".md", ".yaml", ".txt", ".jinja", "Modelfile")
_TOKENS, _OFFLINE = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"), ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_LARGEST_TEXT = 2**20  # bytes; a tokenizer's words are no secrets


def upload(
    folder: Path, repository: str, *, private: bool = False, revision: str | None = None, token: str | None = None
) -> str:
    """Make a repository if there is none, and commit a folder's files to it.

    What the hub has already is not sent again: a call after one that stopped goes on.

    Args:
        repository: OWNER/NAME.
        private: of a repository that is made now.
        revision: a branch, which is made if there is none.
        token: by default what the environment has (HF_TOKEN), or a login.

    Returns:
        Its address.

    Raises:
        UserError: the folder's checks have failed, or it would tell what is of this machine alone; the hub refuses.
    """
    if not _NAME.fullmatch(repository):
        raise UserError(f"upload {repository}: name the repository as OWNER/NAME")
    _require_sound(folder)
    _require_public(folder)
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        if revision:
            api.create_branch(repository, branch=revision, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, revision=revision, commit_message="Upload by distill-tune"
        )
    except Exception as error:  # of whatever client the hub's library has underneath
        raise UserError(f"upload {repository}: {_reason(error, token)}") from None
    return f"{url}/tree/{revision}" if revision else str(url)


def _require_sound(folder: Path) -> None:
    """
    Raises:
        UserError: it is no model, or its checks have failed.
    """
    record = read_record(folder)
    if record is None and not is_model_folder(folder):
        raise UserError(f"upload {folder}: {nothing_at(folder)}")
    if record is None:
        print(f"{folder}: has no export.json: nobody has compared it with its source, as `distill-tune export` does")
    elif not record.get("passed") or folder.name.endswith(FAILED):
        checks = [check for check in record.get("checks", []) if not check.get("passed")]
        found = "; ".join(f"{check.get('name')}: {check.get('found')}" for check in checks)
        raise UserError(f"upload {folder}: is not as its source ({found or 'its checks failed'}); export once more")


def _require_public(folder: Path) -> None:
    """
    Raises:
        UserError: an adapter names its base by a path of this machine; a file has what looks like a secret.
    """
    config = folder / _ADAPTER
    base = str(_read(config).get(_BASE, "")) if config.is_file() else "a/b"
    if not _NAME.fullmatch(base) or Path(base).exists():
        raise UserError(
            f"upload {folder}: {_ADAPTER} names the base {base}, which is on this machine alone; export once more with "
            "--base-model OWNER/NAME"
        )
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name.endswith(_TEXTS) and file.stat().st_size <= _LARGEST_TEXT:
            text = file.read_text(encoding="utf-8", errors="replace")
            if hide_secrets(text) != text:
                raise UserError(f"upload {folder}: {file.name} has what looks like a token or a password; take it out")


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from error
    return content if isinstance(content, dict) else {}


def _reason(error: Exception, token: str | None) -> str:
    """What went wrong and what to do, in a line, without the token."""
    status, kind = getattr(getattr(error, "response", None), "status_code", None), type(error).__name__
    if status == 401:
        origin = _origin_of(token)
        told = f"the hub does not know the token of {origin}" if origin else "the hub wants a token, and there is none"
        told += "; `hf auth login` takes one that may write and keeps it, --token or HF_TOKEN gives it for a call"
    elif status == 403:
        told = f"the token of {_origin_of(token)} may not write there: is the owner's name right?"
    elif kind == "OfflineModeIsEnabled":
        name = next((name for name in _OFFLINE if os.environ.get(name)), _OFFLINE[0])
        told = f"{name} is set, which forbids every request; `env -u {name} distill-tune upload ...` goes without it"
    elif kind in ("ConnectError", "ConnectionError", "NetworkError"):
        told = "the hub cannot be reached; a mirror is set with HF_ENDPOINT"
    else:
        told = f"{kind}: {one_line(error)[:300]}; a second call goes on where this one stopped"
    return hide_secrets(told.replace(token, "***") if token else told)


def _origin_of(token: str | None) -> str | None:
    """Where the token in use is from; None where there is none."""
    from huggingface_hub import get_token

    variable = next((name for name in _TOKENS if os.environ.get(name)), None)
    return "--token" if token else variable or ("your login" if get_token() else None)

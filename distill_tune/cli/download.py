"""`distill-tune download`: a model's folder from the Hugging Face Hub, a mirror of it, or ModelScope."""

import argparse
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill_tune.config.files import local_path
from distill_tune.disk import digest, require_space
from distill_tune.errors import UserError
from distill_tune.secrets import hide_secrets

_DESCRIPTION = """Download a model into a folder that a config can name.

  distill-tune download Qwen/Qwen3-0.6B                        into models/Qwen3-0.6B
  distill-tune download Qwen/Qwen3-0.6B --source modelscope    from ModelScope
  HF_ENDPOINT=https://hf-mirror.com distill-tune download Qwen/Qwen3-0.6B

Only what a recipe needs: weights in safetensors (or, where there are none, pytorch_model*.bin), config and tokenizer.
A download that was cut off goes on where it stopped. The token of a gated model comes from --token or the environment
(HF_TOKEN, MODELSCOPE_API_TOKEN); it is written nowhere.
"""
_NEEDED = ("*.json", "*.jinja", "*.model", "*.txt", "model*.safetensors", "LICENSE*", "README.md")
_PICKLED = ("pytorch_model*.bin",)
# Copies of the same weights for other programs.
_NOT_NEEDED = ("onnx/*", "openvino/*", "coreml/*", "metal/*", "*/consolidated*", "original/*.json")


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "download",
        help="download a model from a hub",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="as the hub calls it, e.g. Qwen/Qwen3-0.6B")
    parser.add_argument("--output", type=local_path, help="the folder (default: models/ and the model's name)")
    parser.add_argument("--source", choices=("huggingface", "modelscope"), default="huggingface")
    parser.add_argument("--revision", help="a branch, tag or commit")
    parser.add_argument("--token", help="for a gated or private model; better in the environment")
    parser.add_argument("--all-files", action="store_true", help="everything, not only what a recipe needs")
    parser.set_defaults(function=_download)


def _download(options: argparse.Namespace) -> None:
    owner, _, name = options.model.partition("/")
    if not owner or not name or "/" in name:
        raise UserError(f"download {options.model}: name a model as OWNER/NAME, e.g. Qwen/Qwen3-0.6B")
    folder = options.output or Path("models") / name
    fetch = _from_modelscope if options.source == "modelscope" else _from_hugging_face
    try:
        listed = _listing(options, folder) if options.source == "huggingface" else []
        if options.all_files:
            fetch(options, folder, None)
        else:
            fetch(options, folder, _NEEDED)
            if not list(folder.glob("model*.safetensors")):
                fetch(options, folder, _PICKLED)
        _verify(folder, listed)  # ModelScope's client does so itself
    except UserError:
        raise
    except Exception as error:  # of whatever client the hub's library has underneath
        raise UserError(f"download {options.model}: {_reason(error, options)}") from None
    if not (folder / "config.json").is_file():
        raise UserError(f"download {options.model}: has no config.json: no model of the transformers library")
    print(folder)


def _listing(options: argparse.Namespace, folder: Path) -> Sequence[Any]:
    """The hub's files, with sizes and hashes.

    Raises:
        UserError: one would lie outside of the folder, or the disk is too small for those that are needed.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import filter_repo_objects

    info = HfApi().model_info(options.model, revision=options.revision, files_metadata=True, token=options.token)
    files = {file.rfilename: file for file in info.siblings or []}
    for name in files:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"download {options.model}: the hub lists {name}, which lies outside of the model's folder")
    patterns, unwanted = (None, None) if options.all_files else (list(_NEEDED), list(_NOT_NEEDED))
    wanted = filter_repo_objects(files, allow_patterns=patterns, ignore_patterns=unwanted)
    missing = [files[name].size or 0 for name in wanted if not (folder / name).is_file()]
    require_space(f"download {options.model}", folder.absolute(), sum(missing))
    return list(files.values())


def _verify(folder: Path, files: Sequence[Any]) -> None:
    """Compare what has come with the hub's hashes: SHA-256 of large files, git's of the others.

    Raises:
        OSError: a file's content is another; it is deleted.
    """
    for file in files:
        path = folder / file.rfilename
        if not path.is_file():
            continue
        large = file.lfs["sha256"] if file.lfs else None
        if (large and digest(path) != large) or (not large and file.blob_id and _git_hash(path) != file.blob_id):
            path.unlink()
            raise OSError(f"{file.rfilename}: its content is not what the hub lists, so it was deleted")


def _git_hash(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _from_hugging_face(options: argparse.Namespace, folder: Path, patterns: Sequence[str] | None) -> None:
    from huggingface_hub import snapshot_download

    snapshot_download(
        options.model,
        revision=options.revision,
        local_dir=folder,
        token=options.token,
        allow_patterns=list(patterns) if patterns else None,
        ignore_patterns=list(_NOT_NEEDED) if patterns else None,
    )


def _from_modelscope(options: argparse.Namespace, folder: Path, patterns: Sequence[str] | None) -> None:
    try:
        from modelscope_hub.compat import snapshot_download
    except ModuleNotFoundError as error:
        raise UserError("download --source modelscope: needs a package; pip install modelscope-hub") from error

    logging.getLogger("modelscope_hub").setLevel(logging.WARNING)
    snapshot_download(
        options.model,
        revision=options.revision,
        local_dir=str(folder),
        token=options.token,
        allow_patterns=list(patterns) if patterns else None,
        ignore_patterns=list(_NOT_NEEDED) if patterns else None,
    )


def _reason(error: Exception, options: argparse.Namespace) -> str:
    """What went wrong and what to do, in a line, without the token."""
    kind = type(error).__name__
    if kind == "GatedRepoError":
        told = "its licence must be accepted on the hub first, and --token or HF_TOKEN be yours"
    elif getattr(getattr(error, "response", None), "status_code", None) == 404:
        told = "no such model or revision there, or one that needs a token (--token, HF_TOKEN)"
    elif kind in ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "ConnectionError", "NetworkError"):
        told = "the hub cannot be reached; a mirror is set with HF_ENDPOINT, ModelScope with --source modelscope"
        if options.source == "modelscope":
            told = "ModelScope cannot be reached; without --source modelscope Hugging Face is asked"
    else:
        told = f"{kind}: {' '.join(str(error).split())[:300]}; a second call goes on where this one stopped"
    return hide_secrets(told.replace(options.token, "***") if options.token else told)

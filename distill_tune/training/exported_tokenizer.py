"""The tokenizer of a run as files beside the student."""

import json
import shutil
from pathlib import Path
from typing import Any

from distill_tune.data.tokenizer import HFTokenizer
from distill_tune.models.tokenizer_files import SETTINGS, VOCABULARIES, contents_read, files_of, open_tokenizer

_CONFIG, _TEMPLATE, _TEMPLATES = "tokenizer_config.json", "chat_template.jinja", "additional_chat_templates"
_DEFAULT = "default"


def write_tokenizer(folder: Path, tokenizer: Any, base: Path) -> None:
    """Write what transformers opens as the tokenizer that the rows were written with.

    That is a copy of the files that it was read from, so that whatever read those reads these (transformers' own
    ``save_pretrained`` names classes that its versions before 5 do not have); where they would be opened as another
    tokenizer here, beside another config.json, it is written by transformers. The chat template is written to
    chat_template.jinja and to tokenizer_config.json: some programs look in one, some in the other.

    Args:
        folder: has the student's config.json.
        tokenizer: of :func:`~distill_tune.data.hf_tokenizer`; of any other, and None, the base's is copied.
        base: the folder that the student started from.
    """
    source = getattr(tokenizer, "folder", base)
    own = tokenizer.transformers_tokenizer if isinstance(tokenizer, HFTokenizer) else open_tokenizer(base)
    for file in files_of(source, (*VOCABULARIES, *SETTINGS)):
        shutil.copyfile(file, folder / file.name)
    if own is None:
        return
    _write_settings(folder, own.chat_template)
    if not _is_opened_as(folder, own, source):
        own.save_pretrained(folder)
        _write_settings(folder, own.chat_template)
        if own.is_fast and not _is_opened_as(folder, own, source):
            print(f"{source}: transformers may open this tokenizer as another one beside the student's config.json")


def _write_settings(folder: Path, template: str | dict[str, str] | None) -> None:
    """The chat template, or the templates by name, in both places; no code of a folder's own is named."""
    settings = _read(folder / _CONFIG)
    settings = {key: value for key, value in settings.items() if key not in ("auto_map", "chat_template")}
    named = template if isinstance(template, dict) else {} if template is None else {_DEFAULT: template}
    if named:
        of_several = [{"name": name, "template": text} for name, text in named.items()]
        settings["chat_template"] = template if isinstance(template, str) else of_several
    for name, text in named.items():
        file = folder / _TEMPLATE if name == _DEFAULT else folder / _TEMPLATES / f"{name}.jinja"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    (folder / _CONFIG).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _is_opened_as(folder: Path, own: Any, source: Path) -> bool:
    """Whether transformers makes ``own``, which it made of ``source``, of the files of ``folder``, too."""
    opened = open_tokenizer(folder)
    if opened is None or not own.is_fast:
        return False
    if opened is own:  # of the same files beside the same names in config.json
        return True
    if opened.special_tokens_map != own.special_tokens_map or opened.chat_template != own.chat_template:
        return False
    if type(opened) is type(own) and contents_read(folder) == contents_read(source):
        return True
    return opened.backend_tokenizer.to_str() == own.backend_tokenizer.to_str()


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

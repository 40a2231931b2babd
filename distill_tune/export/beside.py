"""What lies beside the weights of a folder that is no model of transformers': terms and tokenizer."""

import shutil
from pathlib import Path

from distill_tune.export.source import Source
from distill_tune.models.tokenizer_files import files_of
from distill_tune.training.export import TERMS
from distill_tune.training.exported_tokenizer import write_tokenizer


def write_beside(source: Source, folder: Path) -> None:
    """Licence files of the base, and the source's tokenizer with its chat template in both places."""
    write_terms(source, folder)
    write_tokenizer(folder, source.tokenizer, source.checkpoint.folder)


def write_terms(source: Source, folder: Path) -> None:
    """Licence files of the base."""
    for terms in files_of(source.checkpoint.folder, TERMS):
        shutil.copyfile(terms, folder / terms.name)

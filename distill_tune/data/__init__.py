"""Rows, tokens, steps: what a recipe trains on."""

from distill_tune.data.augmentation import Augmentations, DropTokens, ReplaceTokens, TruncatePrompt
from distill_tune.data.batch import Batch
from distill_tune.data.datasets import chat, docstrings, instruct, text
from distill_tune.data.hub import RowsOnHub, local_files_alone
from distill_tune.data.plan import StepPlan, num_supervised
from distill_tune.data.prepare import prepare_rows
from distill_tune.data.prompts import Reading
from distill_tune.data.shape import Shape
from distill_tune.data.tokenised_rows import TokenisedRows, describe_rows
from distill_tune.data.tokenizer import hf_tokenizer

__all__ = [
    "Augmentations",
    "Batch",
    "DropTokens",
    "Reading",
    "ReplaceTokens",
    "RowsOnHub",
    "Shape",
    "StepPlan",
    "TokenisedRows",
    "TruncatePrompt",
    "chat",
    "describe_rows",
    "docstrings",
    "hf_tokenizer",
    "instruct",
    "local_files_alone",
    "num_supervised",
    "prepare_rows",
    "text",
]

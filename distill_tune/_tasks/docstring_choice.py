"""The rows of docstring_choice.yaml."""

import random
from typing import Any

from datasets import Dataset, DatasetDict

from distill_tune.data.docstring_rows import collect

_NUM_ROWS = 200
_MIN_CHARACTERS = 60
_NUM_CHOICES = 4


def rows(**metadata: Any) -> DatasetDict:
    """Questions, four descriptions each, and which is right; of modules that the demo's models have not seen."""
    found = collect(_NUM_ROWS, held_out=True, min_characters=_MIN_CHARACTERS)
    generator = random.Random(0)
    made = []
    for row in found:
        others = generator.sample([other["output"] for other in found if other is not row], _NUM_CHOICES - 1)
        answer = generator.randrange(_NUM_CHOICES)
        choices = [*others[:answer], row["output"], *others[answer:]]
        made.append({"question": row["instruction"], "choices": choices, "answer": answer})
    return DatasetDict({"test": Dataset.from_list(made)})

"""Which tokens of two vocabularies are the same one."""

import pytest
import torch

from distill_tune.alignment.token_bytes import TokenBytes
from distill_tune.alignment.vocabulary_map import VocabularyMap


@pytest.mark.parametrize(
    ("teacher_ends", "shared"),
    [
        ({4}, [(0, 2), (1, 1), (2, 0), (3, 4)]),
        ({4, 5}, [(0, 2), (1, 1), (2, 0)]),  # nothing says which of two ends the student's is
    ],
)
def test_shared_are_tokens_of_the_same_bytes_and_control_tokens_with_one_counterpart(teacher_ends, shared):
    student = TokenBytes((b"a", b"b", None, None, b"ab"), {"<s>": 2, "</s>": 3})
    teacher = TokenBytes((None, b"b", b"a", b"c", None, None), {"<s>": 0, "<eos>": 4, "<turn>": 5})
    classes = VocabularyMap(student, teacher, 6, 7, {3}, teacher_ends).token_classes(torch.device("cpu"))
    pairs = zip(classes.shared_student.tolist(), classes.shared_teacher.tolist(), strict=True)
    assert sorted(pairs) == shared

"""What tells a run from one with other teachers."""

import types

import pytest

from distill_tune.teachers import SeveralTeachers, Teacher
from distill_tune.training.preparation import Steps


class Known(Teacher):
    """By its files, or, where it has none here, by its content."""

    def __init__(self, content="", files=()):
        self.content, self.files = content, files


@pytest.fixture
def identity(tmp_path):
    (tmp_path / "student").write_bytes(b"student")

    def of(*all_teachers):
        teacher = SeveralTeachers(all_teachers, [1.0] * len(all_teachers), [*"abc"][: len(all_teachers)], "mixture")
        teacher.check(None, None, None)
        built = types.SimpleNamespace(
            student_checkpoint=types.SimpleNamespace(all_files=[tmp_path / "student"]), teacher=teacher
        )
        return Steps.identity_with(
            types.SimpleNamespace(plan=types.SimpleNamespace(identity={}), steps_per_epoch=1), built
        )

    return of


def test_each_of_several_teachers_counts_whether_it_has_files_or_not(identity, tmp_path):
    (tmp_path / "teacher").write_bytes(b"one")
    (tmp_path / "another").write_bytes(b"another")
    one, another = Known(files=[tmp_path / "teacher"]), Known(files=[tmp_path / "another"])
    first, second, third = (Known(content=letter * 64) for letter in "123")
    together = [[first, one], [first, another], [second, one], [first, second], [first, third], [one], [first]]
    found = [identity(*each) for each in together]
    assert all(found[number] not in found[:number] for number in range(1, len(found)))
    assert identity(first, one) == found[0]

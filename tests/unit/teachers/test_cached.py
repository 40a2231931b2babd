"""What a stored teacher cannot serve is told before anything loads, with what could."""

import dataclasses

import numpy
import pytest
import torch

from distill_tune.cache import CacheWriter, Manifest, SampledEncoding, TopEncoding, begin, encoded, finish, settings_of
from distill_tune.data import TokenisedRows
from distill_tune.data.batch import joined
from distill_tune.data.datasets import IGNORE_INDEX
from distill_tune.disk import release_locks
from distill_tune.errors import UserError
from distill_tune.losses import DenseLogits, ForwardKL, ReverseKL, TargetProbability, TopK
from distill_tune.teachers import Cached, SeveralTeachers

VOCABULARY = 50


@pytest.fixture(autouse=True)
def _unlocked():
    yield
    release_locks()


def rows_of(count: int, seed: int = 0) -> TokenisedRows:
    """Five tokens each, the last three of them learned."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCABULARY, (5 * count,), dtype=torch.int32, generator=generator)
    labels = tokens.clone().view(count, 5)
    labels[:, :2] = IGNORE_INDEX
    return TokenisedRows(tokens, labels.flatten(), torch.arange(count + 1) * 5, packed=False, max_seq_len=64)


def stored(
    folder, rows: TokenisedRows, encoding=None, date=None, logits_seed=7, names=()
) -> tuple[Cached, torch.Tensor]:
    """A cache of some logits for the rows, and these."""
    encoding = encoding or TopEncoding(VOCABULARY, VOCABULARY)
    logits = torch.randn(3 * len(rows), VOCABULARY, generator=torch.Generator().manual_seed(logits_seed))
    manifest = begin(
        folder, Manifest(encoding.kind, settings_of(encoding), 0, {"content": "a", "names": names}, date=date)
    )
    writer = CacheWriter(folder)
    writer.add(rows.record_keys, encoded(encoding, DenseLogits(logits), rows.digests, [3] * len(rows), seed=0))
    writer.close()
    finish(folder, manifest, [rows.fingerprint])
    return Cached(str(folder)), logits


def test_it_gives_the_word_on_each_row_in_any_order(tmp_path):
    rows = rows_of(6)
    teacher, logits = stored(tmp_path, rows)
    teacher.load(None, torch.device("cpu"))
    order = [4, 1, 5]
    record = teacher(joined([rows[row] for row in order]))
    found = torch.zeros(9, VOCABULARY).scatter(1, record.ids.long(), record.log_probs)
    wanted = logits.view(6, 3, VOCABULARY)[order].flatten(0, 1).log_softmax(-1)
    assert (found - wanted).abs().max() < 3e-3
    assert len(teacher(joined(())).ids) == 0  # a rank that has no row


@pytest.mark.parametrize(
    ("encoding", "loss", "told"),
    [
        (SampledEncoding(VOCABULARY), (ReverseKL(), None, 1.0), "serves ForwardKL, not ReverseKL: kind top_k"),
        (
            SampledEncoding(VOCABULARY),
            (ForwardKL(), None, 2.0),
            "the loss is at 2: make one at 2, or one of kind hidden",
        ),
        (SampledEncoding(VOCABULARY), (ForwardKL(), TargetProbability(), 1.0), "take kind hidden"),
        (
            SampledEncoding(VOCABULARY),
            (ForwardKL(), None, None),
            "temperature is a schedule: take kind hidden",
        ),
        (TopEncoding(VOCABULARY, 4), (TopK(8), None, 1.0), "of 4 tokens cannot serve TopK of 8: make one of 8"),
        (TopEncoding(VOCABULARY, 4), (ForwardKL(), None, 1.0, "mixture"), "combine by sum or by_row"),
    ],
)
def test_a_loss_that_it_cannot_serve_is_refused_with_the_kind_that_could(tmp_path, encoding, loss, told):
    teacher, _ = stored(tmp_path, rows_of(2), encoding)
    with pytest.raises(UserError, match=told) as raised:
        teacher.require_loss(*loss)
    assert str(raised.value).startswith(f"teacher_model.path={tmp_path}: ")
    teacher.require_loss(ForwardKL(), None, 1.0)


def test_among_several_it_is_told_how_they_are_combined(tmp_path):
    teacher, _ = stored(tmp_path, rows_of(2))
    SeveralTeachers([teacher, teacher], [1, 1], ["a", "b"], "sum").require_loss(ForwardKL(), None, 1.0)
    with pytest.raises(UserError, match="mixture"):
        SeveralTeachers([teacher, teacher], [1, 1], ["a", "b"], "mixture").require_loss(ForwardKL(), None, 1.0)


def test_missing_rows_are_counted_and_the_first_are_named(tmp_path):
    rows = rows_of(9)
    teacher, _ = stored(tmp_path, rows.first(4), date="2026-03-01")
    teacher.require_signals([rows.first(3)], augmented=False)
    with pytest.raises(UserError) as raised:
        teacher.require_signals([rows, rows_of(2, seed=1)], augmented=False)
    told = str(raised.value)
    assert "lacks 7 of 11 rows" in told
    assert "row 5; row 6; row 7 and 4 more; add them with the teacher at hand" in told
    assert "made with date=2026-03-01, which a chat template may write" in told
    assert "read otherwise" not in told
    with pytest.raises(UserError, match=r"lacks 2 of 2 rows.* they are read otherwise now: set max_seq_len, train_on"):
        teacher.require_signals([rows_of(2, seed=1)], augmented=False)


def test_a_run_goes_on_with_a_cache_that_has_grown_and_not_with_other_records(tmp_path):
    rows = rows_of(9)
    (first, _), (other, _) = stored(tmp_path / "a", rows.first(4)), stored(tmp_path / "b", rows.first(4), logits_seed=8)
    (small, _) = stored(tmp_path / "c", rows.first(4), TopEncoding(VOCABULARY, 4))
    release_locks()
    begin(tmp_path / "a", first._cache.manifest)
    writer = CacheWriter(tmp_path / "a")
    writer.add(rows.digests[4:], [bytes(row) for row in first._cache.rows(rows.digests[:4])] + [b"\0" * 4])
    writer.close()
    finish(tmp_path / "a", first._cache.manifest, ["rows"])
    contents = []
    for teacher in (first, Cached(str(tmp_path / "a")), other, small):
        teacher.require_signals([rows.first(4)], augmented=False)
        contents.append(teacher.content)
    assert contents[0] == contents[1] != ""
    assert len(set(contents)) == 3
    several = SeveralTeachers([Cached(str(tmp_path / "a")), Cached(str(tmp_path / "b"))], [1, 1], ["a", "b"], "sum")
    several.require_signals([rows.first(4)], augmented=False)
    assert several.content not in ("", *contents)  # of both


def test_of_teachers_by_row_each_needs_its_own_rows_alone(tmp_path):
    rows = dataclasses.replace(rows_of(6), teacher_ids=torch.tensor([0, 0, 0, 1, 1, 0]))
    first, _ = stored(tmp_path / "a", rows.first(3))
    second, _ = stored(tmp_path / "b", dataclasses.replace(rows_of(6), teacher_ids=None))
    with pytest.raises(UserError, match=r"teacher_model.path=.*a: lacks 1 of 4 rows.*: row 6;"):
        SeveralTeachers([first, second], [1, 1], ["a", "b"], "by_row").require_signals([rows], augmented=False)
    with pytest.raises(UserError, match="lacks 3 of 6 rows"):
        SeveralTeachers([first, second], [1, 1], ["a", "b"], "sum").require_signals([rows], augmented=False)
    own = dataclasses.replace(rows, teacher_ids=torch.tensor([0, 0, 0, 1, 1, 1]))
    by_row = SeveralTeachers([first, second], [1, 1], ["a", "b"], "by_row")
    by_row.require_signals([own], augmented=False)
    signal = by_row(joined([own[row] for row in (5, 0, 3)]))
    assert [len(of_one) for of_one in signal.signals] == [3, 6]


def test_a_row_that_now_follows_another_teacher_is_missing(tmp_path):
    rows = dataclasses.replace(rows_of(4), teacher_ids=torch.tensor([0, 1, 1, 0], dtype=torch.int32))
    teacher, logits = stored(tmp_path, rows, names=["a", "b"])
    assert teacher.names == ("a", "b")
    teacher.require_signals([rows], augmented=False)
    record = teacher(joined([rows[row] for row in (3, 1)]))
    found = torch.zeros(6, VOCABULARY).scatter(1, record.ids.long(), record.log_probs)
    assert (found - logits.view(4, 3, VOCABULARY)[[3, 1]].flatten(0, 1).log_softmax(-1)).abs().max() < 3e-3
    turned = dataclasses.replace(rows_of(4), teacher_ids=torch.tensor([1, 1, 0, 0], dtype=torch.int32))
    with pytest.raises(UserError, match="lacks 2 of 4 rows: row 1; row 3;"):
        teacher.require_signals([turned], augmented=False)


def test_changed_prompts_are_refused_but_of_a_teacher_with_its_own(tmp_path):
    rows = rows_of(4)
    teacher, _ = stored(tmp_path, rows)
    with pytest.raises(UserError, match="augmentations make prompts that no cache has"):
        teacher.require_signals([rows], augmented=True)
    teacher.require_signals([dataclasses.replace(rows_of(4, seed=1), teacher=rows)], augmented=True)


def test_a_hundred_thousand_rows_are_looked_up_at_once(tmp_path):
    rows = rows_of(2)
    teacher, _ = stored(tmp_path, rows)
    many = dataclasses.replace(
        rows, tokens=rows.tokens.repeat(50_000), labels=rows.labels.repeat(50_000), offsets=torch.arange(100_001) * 5
    )
    assert numpy.array_equal(teacher._cache.find(many.digests), numpy.tile(teacher._cache.find(rows.digests), 50_000))
    teacher.require_signals([many], augmented=False)


def test_a_folder_that_is_no_cache_is_told_with_the_key(tmp_path):
    with pytest.raises(UserError, match=f"teacher_model.path={tmp_path}: {tmp_path}: no cache of a teacher"):
        Cached(str(tmp_path))

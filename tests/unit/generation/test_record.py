"""What was answered is found again, whatever a kill or a full disk has left of the last line."""

import errno
import json

import pytest

from distill_tune.errors import UserError
from distill_tune.generation.answers import Sample
from distill_tune.generation.record import Record, SampleFile, sample_key

SAMPLES = [
    Sample(sample_key({"model": "a"}, 0, [1, 2, number], 0), "a", 0, 0, "stop", [5, number, 2], -1.5, f"你好 {number}")
    for number in range(4)
]


def write(folder, samples, rank=0):
    with SampleFile(folder, rank) as file:
        for sample in samples:
            file.add(sample)
    return folder / f"rank_{rank:05}.jsonl"


def test_samples_of_all_ranks_are_found_by_their_keys(tmp_path):
    write(tmp_path, SAMPLES[:2])
    write(tmp_path, SAMPLES[2:], rank=1)
    record = Record(tmp_path)
    assert [record[sample.key] for sample in SAMPLES] == SAMPLES
    assert len(record) == 4 and "another" not in record


def test_a_line_that_is_cut_at_any_byte_is_taken_back_and_nothing_else(tmp_path):
    path = write(tmp_path, SAMPLES)
    whole = path.read_bytes()
    starts = [at for at in range(len(whole)) if at == 0 or whole[at - 1] == ord("\n")]
    sizes = {*range(0, len(whole), 11), *starts, *(at + 1 for at in starts), starts[2] - 1, len(whole) - 1}
    for size in sorted({*sizes, len(whole)} - {len(whole) + 1}):
        path.write_bytes(whole[:size])
        kept = whole[:size].count(b"\n")
        assert [sample.key in Record(tmp_path) for sample in SAMPLES] == [number < kept for number in range(4)]
        if size in (starts[1], starts[1] + 1, starts[2] - 1, len(whole) - 1):  # opened again by a run
            write(tmp_path, SAMPLES[kept:])
            assert path.read_bytes() == whole


def test_a_line_longer_than_what_is_read_at_once_is_taken_back(tmp_path):
    path = write(tmp_path, SAMPLES[:1])
    whole = path.read_bytes()
    path.write_bytes(whole + b"x" * 200_000)
    write(tmp_path, [])
    assert path.read_bytes() == whole


def test_a_damaged_line_is_passed_over_and_counted(tmp_path):
    path = write(tmp_path, SAMPLES)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\0" * 20 + b"\n" + json.dumps({"key": "abc"}).encode() + b"\n" + lines[3])
    record = Record(tmp_path)
    assert [sample.key in record for sample in SAMPLES] == [True, False, False, True]
    assert record.num_damaged == 2 and record[SAMPLES[3].key] == SAMPLES[3]


def test_a_full_disk_is_told_and_leaves_whole_lines(tmp_path, monkeypatch):
    file = SampleFile(tmp_path, 0)
    file.add(SAMPLES[0])
    stream = file._stream

    class Full:
        """A disk with room for ten bytes, then none."""

        room = 10

        def write(self, line):
            if not self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            written = stream.write(line[: self.room])
            self.room -= written
            return written

        def __getattr__(self, name):
            return getattr(stream, name)

    file._stream = Full()
    for told in ("only 10 of", "No space left on device"):
        with pytest.raises(UserError, match=f"rank_00000.jsonl: {told}.* the same command goes on"):
            file.add(SAMPLES[1])
        assert [sample.key in Record(tmp_path) for sample in SAMPLES] == [True, False, False, False]
        assert stream.seek(0, 2) == len((tmp_path / "rank_00000.jsonl").read_bytes().splitlines(keepends=True)[0])


@pytest.mark.parametrize(
    "change", [{"identity": {"model": "b"}}, {"seed": 1}, {"prompt": [1, 2]}, {"number": 1}, {"identity": {}}]
)
def test_a_key_tells_all_that_decides_on_a_sample(change):
    made_from = {"identity": {"model": "a", "sampling": {"top_p": 1.0}}, "seed": 0, "prompt": [1, 2, 3], "number": 0}
    assert sample_key(**made_from) == sample_key(**dict(reversed(made_from.items())))
    assert sample_key(**made_from) != sample_key(**made_from | change)

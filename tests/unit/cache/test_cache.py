"""A cache is written whole, found by what rows contain, and says what is wrong with it."""

import dataclasses
import json
import random

import numpy
import pytest
import torch

from distill_tune import kept_digests
from distill_tune.cache import (
    MANIFEST,
    OUTPUT_LAYER,
    CacheReader,
    CacheWriter,
    Manifest,
    TopEncoding,
    begin,
    damage_of,
    damaged_beside,
    finish,
    is_whole,
    read_output_layer,
    read_vocabulary,
    shard_files,
    write_output_layer,
    write_vocabulary,
)
from distill_tune.cache.beside import VOCABULARY
from distill_tune.cache.shard import Shard
from distill_tune.disk import digest, release_locks
from distill_tune.errors import UserError
from distill_tune.losses import AutogradProjection, LinearProjection, TopTokens
from distill_tune.models.vocabulary import Vocabulary

ENCODING = TopEncoding(100, 4)
MADE = Manifest("top_k", dataclasses.asdict(ENCODING), seed=0, teacher={"content": "a", "dtype": "fp32"})


@pytest.fixture(autouse=True)
def _unlocked():
    yield
    release_locks()


def rows_of(count: int) -> tuple[list[bytes], list[bytes]]:
    """Digests, and the records of 1 to 5 positions each."""
    draws = random.Random(0)
    counts = [draws.randint(1, 5) for _ in range(count)]
    logits = torch.randn(sum(counts), 100, generator=torch.Generator().manual_seed(0))
    digests = [draws.randbytes(16) for _ in range(count)]
    digests[3] = digests[2][:8] + digests[3][8:]  # the half by which they are sorted is not all of it
    return digests, ENCODING.encode(TopTokens.of(logits, 4), counts)


def written(folder, digests, rows, shard_bytes=300):
    manifest = begin(folder, MADE)
    writer = CacheWriter(folder, shard_bytes)
    for each, row in zip(digests, rows, strict=True):
        writer.add([each], [row])
    writer.close()
    return finish(folder, manifest, ["rows"])


def test_rows_are_found_in_any_order_and_others_are_not(tmp_path):
    digests, rows = rows_of(40)
    manifest = written(tmp_path / "cache", digests, rows)
    assert len(manifest.files) > 5
    assert (manifest.num_rows, manifest.num_positions) == (40, sum(row[0] for row in rows))
    assert manifest.num_bytes == sum(path.stat().st_size for path in shard_files(tmp_path / "cache"))
    reader = CacheReader(tmp_path / "cache")
    order = random.Random(1).sample(range(40), 40)
    assert [bytes(row) for row in reader.rows([digests[i] for i in order])] == [rows[i] for i in order]
    none = [bytes(16), digests[2][:8] + bytes(8), b"\xff" * 16]
    assert reader.find(none).tolist() == [-1, -1, -1]
    with pytest.raises(KeyError):
        reader.rows(none)
    assert reader.encoding.decode(reader.rows(digests)).ids.shape == (manifest.num_positions, 4)


def test_the_same_rows_make_the_same_files(tmp_path):
    digests, rows = rows_of(40)
    for name in ("one", "other"):
        written(tmp_path / name, digests, rows)
        release_locks()
    files = [{path.name: path.read_bytes() for path in shard_files(tmp_path / name)} for name in ("one", "other")]
    assert files[0] == files[1]
    assert (tmp_path / "one" / MANIFEST).read_text() == (tmp_path / "other" / MANIFEST).read_text()


def test_what_was_closed_is_not_written_again_and_what_a_kill_left_is_taken_away(tmp_path):
    digests, rows = rows_of(40)
    whole = written(tmp_path / "whole", digests, rows)
    folder = tmp_path / "cache"
    begin(folder, MADE)
    writer = CacheWriter(folder, 300)
    writer.add(digests[:13], rows[:13])
    assert not writer.lacks(digests[:13])
    assert writer.lacks(digests[:14])
    del writer  # as a kill does
    (folder / ".records.1.partial").write_bytes(b"half")
    release_locks()
    manifest = begin(folder, dataclasses.replace(MADE, package="another version"))
    writer = CacheWriter(folder, 300)
    closed = [row for row in range(40) if not writer.lacks([digests[row]])]
    assert closed == list(range(len(closed)))
    assert closed
    writer.add(digests, rows)
    writer.add(digests, rows)
    writer.close()
    done = finish(folder, manifest, ["rows"])
    assert not list(folder.glob("*.partial")) + list(folder.glob(".*.partial"))
    assert (done.num_rows, done.num_positions) == (whole.num_rows, whole.num_positions)
    reader = CacheReader(folder)
    assert [bytes(row) for row in reader.rows(digests)] == rows


def test_an_unfinished_cache_is_not_used_and_one_that_grows_is(tmp_path):
    digests, rows = rows_of(40)
    begin(tmp_path, MADE)
    with pytest.raises(UserError, match="is not finished; the command that began it goes on"):
        CacheReader(tmp_path)
    release_locks()
    written(tmp_path, digests[:10], rows[:10])
    release_locks()
    manifest = begin(tmp_path, MADE)
    assert manifest.finished
    writer = CacheWriter(tmp_path, 300)
    writer.add(digests, rows)
    assert len(CacheReader(tmp_path).rows(digests[:10])) == 10
    writer.close()
    assert finish(tmp_path, manifest, []).num_rows == 40
    assert len(CacheReader(tmp_path).rows(digests)) == 40


def test_a_row_in_two_shards_is_counted_once_and_a_shard_that_is_gone_is_not_whole(tmp_path):
    digests, rows = rows_of(8)
    written(tmp_path, digests, rows)
    again = Shard.write(tmp_path, digests[:1], rows[:1])  # as two processes leave a row that both have met
    manifest = finish(tmp_path, MADE, [])
    assert (manifest.num_rows, manifest.num_positions) == (8, sum(row[0] for row in rows))
    assert is_whole(tmp_path, manifest)
    again.unlink()
    assert not is_whole(tmp_path, manifest)
    assert not CacheWriter(tmp_path).lacks(digests)
    assert is_whole(tmp_path, finish(tmp_path, MADE, []))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"kind": "sampled", "settings": {}}, "cache.kind was top_k, is sampled"),
        ({"settings": {**MADE.settings, "k": 5}}, "cache.k was 4, is 5"),
        ({"teacher": {"content": "b", "dtype": "fp32"}}, "content of teacher_model was a, is b"),
        ({"tokenizer": "other"}, "tokenizer was not set, is other"),
    ],
)
def test_a_folder_with_another_cache_is_refused_once_it_has_a_row(tmp_path, changed, told):
    begin(tmp_path, dataclasses.replace(MADE, **changed))
    (tmp_path / OUTPUT_LAYER).touch()
    release_locks()
    assert begin(tmp_path, MADE) == MADE == Manifest.read(tmp_path)
    assert not (tmp_path / OUTPUT_LAYER).exists()
    release_locks()
    written(tmp_path, *rows_of(4))
    release_locks()
    with pytest.raises(UserError, match=told):
        begin(tmp_path, dataclasses.replace(MADE, **changed))


def test_settings_of_another_kind_are_not_compared():
    other = dataclasses.replace(MADE, kind="sampled", settings={"draws": 50, "vocab_size": 320})
    assert list(other.differences(MADE)) == ["cache.kind was sampled, is top_k"]


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(UserError, match=r"holds metrics\.jsonl, and is no cache; name a new folder"):
        begin(tmp_path, MADE)


def test_a_folder_that_another_run_writes_to_is_refused(tmp_path):
    begin(tmp_path, MADE)
    with pytest.raises(UserError, match="another run is writing there"):
        begin(tmp_path, MADE)


def test_damage_is_told_where_it_is(tmp_path):
    digests, rows = rows_of(40)
    manifest = written(tmp_path, digests, rows)
    first, second, third = shard_files(tmp_path)[:3]
    assert damage_of(first) is None
    content = bytearray(first.read_bytes())
    content[content.index(rows[0]) + 6 if rows[0] in content else -10] ^= 1
    first.write_bytes(content)
    assert "is damaged: its checksum differs" in damage_of(first)
    reader = CacheReader(tmp_path)
    with pytest.raises(UserError, match=rf"{first.name}: row \d+ is damaged"):
        reader.rows(digests)
    second.write_bytes(second.read_bytes()[:-1])
    with pytest.raises(
        UserError,
        match=rf"{second.name}: is damaged: it has [\d,]+ bytes, not [\d,]+; copy it again, or delete it, and",
    ):
        CacheReader(tmp_path)
    second.unlink()
    with pytest.raises(UserError, match=f"{second.name}: is missing"):
        CacheReader(tmp_path)
    third.write_bytes(b"nothing")
    release_locks()
    begin(tmp_path, MADE)
    assert not third.exists()  # its rows are made anew
    assert len(shard_files(tmp_path)) == len(manifest.files) - 2


@pytest.mark.parametrize(
    ("text", "told"),
    [(None, "no cache of a teacher"), ("{", "cannot be read"), ("{}", "cannot be read"), ("[]", "cannot be read")],
)
def test_a_folder_without_a_readable_manifest_is_told(tmp_path, text, told):
    if text is not None:
        (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(UserError, match=told):
        CacheReader(tmp_path)


@pytest.mark.parametrize(
    "changed",
    [
        {"files": []},
        {"files": {"records-0.safetensors": {"rows": 1, "positions": 1}}},
        {"files": {"records-0.safetensors": None}},
        {"settings": "x"},
        {"settings": {"vocab_size": 100, "k": 4, "temperature": "x"}},
        {"teacher": None},
        {"rows": None},
        {"date": 3},
        {"beside": ["a"]},
    ],
)
def test_a_manifest_of_other_values_is_told_and_not_used(tmp_path, changed):
    MADE.write(tmp_path)
    values = json.loads((tmp_path / MANIFEST).read_text())
    assert Manifest.read(tmp_path) == MADE
    (tmp_path / MANIFEST).write_text(json.dumps(values | changed))
    with pytest.raises(UserError, match=r"manifest\.json: cannot be read: (Value|Type)Error: "):
        Manifest.read(tmp_path)


def test_a_cache_of_a_later_format_is_told(tmp_path):
    MADE.write(tmp_path)
    values = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps(values | {"format": 2}))
    with pytest.raises(UserError, match="a cache of format 2; this version reads 1"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("softcap", [None, 30.0])
def test_an_output_layer_comes_back(tmp_path, softcap):
    layer = LinearProjection(torch.randn(10, 4).bfloat16(), torch.randn(10), softcap)
    write_output_layer(tmp_path, layer)
    back = read_output_layer(tmp_path, torch.device("cpu"))
    assert torch.equal(back.weight, layer.weight)
    assert torch.equal(back.bias, layer.bias)
    assert back.softcap == softcap


def test_what_is_beside_the_shards_is_compared_with_its_checksum_and_made_anew(tmp_path):
    begin(tmp_path, MADE)
    layer = LinearProjection(torch.randn(10, 4), None, None)
    write_output_layer(tmp_path, layer)
    write_vocabulary(tmp_path, Vocabulary({0: "a"}, frozenset()))
    writer = CacheWriter(tmp_path)
    writer.add(*rows_of(4))
    writer.close()
    manifest = finish(tmp_path, MADE, [])
    release_locks()
    assert not damaged_beside(tmp_path, manifest)
    readers = {OUTPUT_LAYER: lambda: read_output_layer(tmp_path, "cpu"), VOCABULARY: lambda: read_vocabulary(tmp_path)}
    for name, read in readers.items():
        read()
        content = bytearray((tmp_path / name).read_bytes())
        content[-1] ^= 128
        (tmp_path / name).write_bytes(content)
        told = f"{name}: is damaged: its checksum differs; copy it again, or delete it, and the command"
        with pytest.raises(UserError, match=told):
            read()
        assert told in damaged_beside(tmp_path, manifest)[tmp_path / name]
        begin(tmp_path, MADE)
        assert not (tmp_path / name).exists()
        release_locks()
        with pytest.raises(
            UserError, match=f"{name}: is missing; copy it again, or the command that made the cache makes it anew"
        ):
            CacheReader(tmp_path)
        manifest = finish(tmp_path, manifest, [])  # without what is gone


def test_an_output_layer_is_hashed_once_at_a_start(tmp_path, monkeypatch):
    folder, hashed = tmp_path / "cache", []
    monkeypatch.setenv("DISTILL_TUNE_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(kept_digests, "digest", lambda path: hashed.append(path.name) or digest(path))
    monkeypatch.setattr(kept_digests, "_JUST_NOW", -1.0)
    begin(folder, MADE)
    write_output_layer(folder, LinearProjection(torch.randn(2**10, 2**8), None, None))
    manifest = finish(folder, MADE, [])
    for _ in range(2):
        assert not damaged_beside(folder, manifest)
    read_output_layer(folder, torch.device("cpu"))
    assert hashed == [OUTPUT_LAYER]


def test_an_output_layer_that_is_no_matrix_is_refused(tmp_path):
    with pytest.raises(UserError, match="output layer is quantised, or has an adapter"):
        write_output_layer(tmp_path, AutogradProjection(lambda hidden: hidden, 4))


def test_a_million_rows_are_found_at_once(tmp_path):
    """By a search in sorted digests; here in a shard of many empty rows."""
    count = 20_000
    digests = [number.to_bytes(16, "big") for number in range(count)]  # nearly all have the same first half
    digests = digests[:50] + [numpy.random.default_rng(i).bytes(16) for i in range(count - 50)]
    row = ENCODING.encode(TopTokens.of(torch.zeros(1, 100), 4), [1])[0]
    manifest = begin(tmp_path, MADE)
    writer = CacheWriter(tmp_path)
    writer.add(digests, [row] * count)
    writer.close()
    finish(tmp_path, manifest, [])
    assert (CacheReader(tmp_path).find(digests) == numpy.arange(count)).all()

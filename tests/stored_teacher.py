"""What a run from a stored teacher leaves, and what a cache holds."""

from pathlib import Path

from tiny import MEASURED, metrics_of

from distill_tune.cache import CacheReader

ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
CACHED = ["teacher_model={_component_: distill_tune.teachers.Cached, path: cache}"]


def losses_of(folder: Path) -> list[dict]:
    return [{key: line[key] for key in line.keys() - MEASURED} for line in metrics_of(folder)]


def of_all(folder: Path):
    """The record of every row, in the order of digests."""
    reader = CacheReader(folder)
    digests = sorted(bytes(digest) for shard in reader._shards for digest in shard.digests)
    assert len(set(digests)) == len(digests)
    return reader.encoding.decode(reader.rows(digests))

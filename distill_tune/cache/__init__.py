"""A teacher's word on rows, stored: found by what a row contains, whatever the order in which it is asked for."""

from distill_tune.cache.agreement import Agreement
from distill_tune.cache.beside import OUTPUT_LAYER, damaged_beside
from distill_tune.cache.encoding import (
    AnyEncoding,
    Encoding,
    HiddenEncoding,
    LikelihoodEncoding,
    SampledEncoding,
    TopEncoding,
    encoding_of,
    positions_in,
    settings_of,
)
from distill_tune.cache.manifest import MANIFEST, Manifest
from distill_tune.cache.output_layer import read_output_layer, write_output_layer
from distill_tune.cache.reader import CacheReader
from distill_tune.cache.recording import encoded, scores_of
from distill_tune.cache.shard import damage_of, shard_files
from distill_tune.cache.vocabulary_file import fingerprint_of, read_vocabulary, write_vocabulary
from distill_tune.cache.writer import (
    SHARD_BYTES,
    CacheWriter,
    begin,
    cache_there,
    finish,
    is_whole,
    require_free,
    require_same_teacher,
)

__all__ = [
    "MANIFEST",
    "OUTPUT_LAYER",
    "SHARD_BYTES",
    "Agreement",
    "AnyEncoding",
    "CacheReader",
    "CacheWriter",
    "Encoding",
    "HiddenEncoding",
    "LikelihoodEncoding",
    "Manifest",
    "SampledEncoding",
    "TopEncoding",
    "begin",
    "cache_there",
    "damage_of",
    "damaged_beside",
    "encoded",
    "encoding_of",
    "fingerprint_of",
    "finish",
    "is_whole",
    "positions_in",
    "read_output_layer",
    "read_vocabulary",
    "require_free",
    "require_same_teacher",
    "scores_of",
    "settings_of",
    "shard_files",
    "write_output_layer",
    "write_vocabulary",
]

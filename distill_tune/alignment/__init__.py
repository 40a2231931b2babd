"""Teacher and student of different tokenizers: bytes of tokens, spans of rows, the map between vocabularies."""

import distill_tune.data  # noqa: F401  (first, since it imports what is here, which imports parts of it)

"""Teacher and student of different tokenizers: bytes of tokens, spans of rows, the map between vocabularies."""

"""A teacher over HTTP: the server, and what asks servers, ours and others', for records."""

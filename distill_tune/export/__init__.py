"""Forms that a student is shipped in, each written, opened by the tool that it is for, and compared with its source.

:func:`~distill_tune.export.ship.export` does it; :func:`~distill_tune.export.upload.upload` puts the folder onto a hub.
"""

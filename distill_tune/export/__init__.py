"""Forms that a student is shipped in, each written, opened by the tool that it is for, and compared with its source."""

from distill_tune.export.ship import Result, export
from distill_tune.export.source import Source, open_source

__all__ = ["Result", "Source", "export", "open_source"]

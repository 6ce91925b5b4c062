"""A session as one file to keep or to give away: a ZIP of JSON lines and little-endian numbers (`docs/reference/format.md`).

Nothing in it is code, nothing is trusted: an import checks every length, digest and span before it writes a row.
"""

from .agreement import UNVERIFIED, settle
from .exporting import export_session

__all__ = ["UNVERIFIED", "export_session", "settle"]

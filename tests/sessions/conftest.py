"""A store and a session for tests that say nothing else."""

from conversing import session, store

__all__ = ["session", "store"]

"""Indexes over the rows: caches in memory and in files, made again on any doubt."""

"""The record on disk, and the caches made from it. The only package that knows SQL and FAISS; no model, no text.

`backend` says what a database has to do, `sqlite/` does it, `open` chooses. `lineage`, `sweeping` and `rewriting` are written
once over any database. `index/` holds caches of the rows.
"""

"""What is kept on disk. `backend` says what a database has to do, `sqlite/` does it, `open` chooses; `lineage` and `sweeping`
are written once over any of them; `index/` holds caches of the rows. The only place that knows SQL and
FAISS; no model, no text.
"""

"""What is kept on disk: `database` (one SQLite file), `migrations` (its schema), `records` (its rows), `search` and `index`.

The only place that knows SQLite and FAISS. Bytes and numpy arrays go in and out; no model, no text.
"""

"""One SQLite file: the embedded database. Nothing outside names it but `store.open`."""

"""One schema of a PostgreSQL database, for workers on many machines. Nothing outside names it but `store.open`."""

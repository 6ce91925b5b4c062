"""The rows of a store in SQL: one set of statements and one schema for every SQL database. Names no driver."""

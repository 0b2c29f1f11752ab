"""The store: one function is one statement, and one statement is one transaction.

A function carries the name of its verb, and so does the file of its SQL in `sql/`. The moves
between the states are functions of the schema (`schema/*.sql`), since each is several statements
that belong together; what is here calls them, or reads. Nothing here commits, retries or
reconnects: who owns the `Session` does.
"""

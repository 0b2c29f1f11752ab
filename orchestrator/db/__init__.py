"""The machinery round PostgreSQL: connections, statements, migrations, the embedded server."""

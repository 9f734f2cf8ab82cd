"""Alembic's entry: migrations run on the connection that pipeline.db.migrate hands over."""

from alembic import context

from pipeline.db.tables import METADATA

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=METADATA, transaction_per_migration=False)
with context.begin_transaction():
    context.run_migrations()

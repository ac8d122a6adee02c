"""What goes in: row schema, column mapping, readers, deterministic work units."""

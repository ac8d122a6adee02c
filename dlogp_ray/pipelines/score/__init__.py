"""The score job: corpus + policies -> a table of per-token statistics."""

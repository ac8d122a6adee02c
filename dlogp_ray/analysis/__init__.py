"""Mergeable summaries of scored tokens."""

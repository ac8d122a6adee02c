"""The report that people look at: one HTML file, with charts and texts that need no network."""

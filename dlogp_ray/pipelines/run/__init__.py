"""What every job does that makes a run: begin or join it, its units one by one, seal it."""

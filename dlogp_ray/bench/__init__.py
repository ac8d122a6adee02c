"""How fast this machine scores, beside what else one could use, in one run."""

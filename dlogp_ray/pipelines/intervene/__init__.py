"""The intervene job: problems + two policies -> a table of graded answers, and its curve."""

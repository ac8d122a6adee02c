"""Two policies decode together: rules, the paired block loop, grading. Needs no Ray."""

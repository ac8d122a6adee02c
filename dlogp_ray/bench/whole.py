"""Arms that one process runs alone, and the product that measures what it can do at most."""

WHOLE = ("naive_logp_twice", "naive_statistics", "matmul")
"""Arms of one process with all threads over all texts; the others share the texts."""
MATMUL_SIZE, MATMULS = 2_048, {"cpu": 4, "cuda": 400}
"""The square products of the arm that measures the peak: a second of one core, or hundredths of one
of a GPU, beside which what asks for them takes nothing."""

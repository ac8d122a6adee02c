"""The command line: ``dlogp score | sparsity | reweight | intervene | show | query | verify | …``.

Everything heavy is imported by the command that needs it, so that ``--help`` is quick.
"""

from dlogp_ray.cli.application import app, main

# Commands stand in ``--help`` in this order.
from dlogp_ray.cli import init, runs, analyses, reading, machine, demo  # isort: skip

__all__ = ["analyses", "app", "demo", "init", "machine", "main", "reading", "runs"]

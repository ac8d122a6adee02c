"""``python -m dlogp_ray.cli``."""

from dlogp_ray.cli import main

main()

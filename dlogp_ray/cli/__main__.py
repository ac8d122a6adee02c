"""``python -m dlogp_ray.cli``."""

from dlogp_ray.cli import main

if __name__ == "__main__":
    main()

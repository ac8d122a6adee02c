"""``dlogp`` and ``python -m dlogp_ray``: a Ctrl-C ends it even while it is being imported."""

import sys

from dlogp_ray.errors import ExitCode


def main() -> None:
    """Import the command line, and run it."""
    try:
        from dlogp_ray.cli import main as run_command_line

        run_command_line()
    except KeyboardInterrupt:
        sys.stderr.write("dlogp: interrupted\n")
        sys.exit(int(ExitCode.INTERRUPTED))


if __name__ == "__main__":
    main()

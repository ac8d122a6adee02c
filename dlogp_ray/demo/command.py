"""The command lines of the demo's trainings: an option for each of their settings."""

import argparse
import logging
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any


def parser_of(
    module: str, description: str | None, settings: Any, out: str
) -> argparse.ArgumentParser:
    """A parser of `--out`, a path, and of a dataclass's fields.

    Args:
        module: What `python -m` runs.
        description: Of the command, printed as it stands.
        settings: A dataclass whose fields have defaults, and `help` in their metadata.
        out: What is said of the folder.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help=out)
    for option in fields(settings):
        parser.add_argument(
            "--" + option.name.replace("_", "-"),
            type=type(option.default),
            default=option.default,
            help=f"{option.metadata['help']} (default: {option.default})",
        )
    return parser


def log_to_stderr() -> None:
    """Log what the demo does on standard error; of libraries, warnings."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    for name in ("__main__", "dlogp_ray.demo"):  # the module that was run, and what it calls
        logging.getLogger(name).setLevel(logging.INFO)
    # TRL 1.16 passes transformers an argument that transformers 5 has renamed.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)

"""What happens in a job, event by event, through Python's logging; as JSON lines for machines."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from dlogp_ray.addresses import without_credentials
from dlogp_ray.visible import visible

LOG = logging.getLogger("dlogp_ray.events")
"""Silent unless a program gives it a level and a handler."""


SAID_FIRST_S, SAID_EVERY_S = 10.0, 30.0
"""From when on a wait is said, and how often then."""


def say(event: str, level: int = logging.INFO, **fields: Any) -> None:
    """Something happened.

    Args:
        event: What, in a word.
        level: Of the log.
        fields: What can be said of it, of types that JSON has.
    """
    LOG.log(level, event, extra={"fields": fields})


def tell(event: str, text: str, **fields: Any) -> None:
    """Something that whoever looks on should know, progress or not: on standard error, or the log.

    Args:
        event: What, in a word.
        text: The same for people.
        fields: As ``say``.
    """
    say(event, logging.WARNING, text=text, **fields)
    if not LOG.handlers:
        sys.stderr.write(visible(f"dlogp: {without_credentials(text)}\n"))
        sys.stderr.flush()


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, event, and the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": when, "level": record.levelname.lower(), "event": record.getMessage()}
        said = json.dumps(line | getattr(record, "fields", {}), ensure_ascii=False)
        return without_credentials(said)


def log_to_standard_error() -> None:
    """Write this process's events to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False

"""What ``query --help`` says of a run's views, made from the kinds of tables when asked for."""

from collections.abc import Iterator
from typing import Any

from typer.core import TyperCommand


class QueryCommand(TyperCommand):
    """``query``: its help ends with the views and their columns."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The views, then what every command's help ends with."""
        formatter.write_paragraph()
        for line in _lines():
            formatter.write_text(line)
        super().format_epilog(ctx, formatter)


def _lines() -> Iterator[str]:
    from dlogp_ray.tables.kinds import KINDS
    from dlogp_ray.tables.sql import MADE_BY, views_of

    for kind in KINDS.values():
        yield f"Views of a run of {kind.job}:"
        for view, columns in views_of(kind, kind.schema({}).names).items():
            told = f"as {kind.table}, of the rows that are not ok"
            yield f"  {view}: {told if view == 'rejected' else ', '.join(columns)}"
        for beside in kind.beside:
            view, command = MADE_BY[beside]
            yield f"  {view}: once {command.format(uri='RUN')} has made it"
    yield 'DESCRIBE, as in: query RUN "DESCRIBE tokens", lists a view\'s columns with their types.'

"""``init``: a job file to begin with, from what a corpus's files show."""

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dlogp_ray.cli.application import app, epilog
from dlogp_ray.cli.options import OverwriteOption
from dlogp_ray.cli.out import check_new, written
from dlogp_ray.config import BASE, ScoreConfig
from dlogp_ray.errors import Refused

_SCHEMA = "score.schema.json"


@app.command(
    short_help="Write a job file, from what a corpus's files show.",
    epilog=epilog("dlogp init --corpus rollouts/ --base checkpoints/base --rl checkpoints/rl"),
)
def init(
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            help="Rollouts: a file, folder or glob; may be repeated, NAME=PATH for those of the "
            "policy NAME."
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="The base policy: folder, URL or hub id.")
    ] = None,
    rl: Annotated[
        list[str] | None,
        typer.Option(help="The RL policy, or NAME=POLICY for several; may be repeated."),
    ] = None,
    output: Annotated[str, typer.Option(help="Folder or URL under which the run goes.")] = "runs",
    run_id: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
    out: Annotated[Path, typer.Option(help="The job file.")] = Path("job.yaml"),
    overwrite: OverwriteOption = False,
) -> None:
    """Write a job file: looks at the corpus's files, names their format, fills in the columns.

    What is not given is asked for. The file's JSON schema is written beside it, for editors.
    """
    from dlogp_ray.config.job_file import schema_of, score_job_file

    check_new(out, overwrite=overwrite)
    corpus = corpus or [_asked("Rollouts (a file, folder or glob)")]
    base = base or _asked("Base policy (folder, URL or hub id)")
    rl = rl or [_asked("RL policy (folder, URL or hub id)")]
    policies = {BASE: base} | dict(_named(one, "rl") for one in rl)
    entries, carry, possible = _entries(corpus)
    text = score_job_file(
        corpus=entries,
        policies=policies,
        output=output,
        run_id=run_id or _as_run_id(Path(corpus[0].rpartition("=")[2]).stem),
        carry=carry,
        possible=possible,
        schema=_SCHEMA,
    )
    with written(out) as sink:
        sink.write(text.encode())
    with written(out.with_name(_SCHEMA)) as sink:
        sink.write(schema_of(ScoreConfig).encode())
    ScoreConfig.from_yaml(out)
    typer.echo(text)
    typer.echo(f"{out} is written; next: dlogp corpus {out}", err=True)


def _asked(what: str) -> str:
    if not sys.stdin.isatty():
        option = what.partition(" ")[0].lower()
        raise Refused(f"init: {option} is missing; give --corpus, --base and --rl")
    return str(typer.prompt(what))


def _named(given: str, name: str) -> tuple[str, str]:
    """``NAME=VALUE``, or a value under ``name``."""
    before, equals, after = given.partition("=")
    return (before, after) if equals and re.fullmatch(r"[\w.-]+", before) else (name, given)


def _entries(corpus: list[str]) -> tuple[list[Any], list[str], list[str]]:
    """The corpus's entries, what is carried, and what could be."""
    from dlogp_ray.config.run import MAX_ROW_BYTES
    from dlogp_ray.corpus.files import list_corpus
    from dlogp_ray.corpus.guessing import guess

    entries: list[Any] = []
    carry: dict[str, None] = {}
    possible: dict[str, None] = {}
    for given in corpus:
        generator, path = _named(given, "")
        seen = guess(list_corpus([path])[0], MAX_ROW_BYTES)
        entry: dict[str, Any] = {"path": path}
        if seen.format is not None:
            entry["format"] = seen.format
        if generator:
            entry["constants"] = {"generator": generator}
        if seen.columns:
            entry["columns"] = seen.columns
        if seen.auto and seen.format is None:
            entry["sample_id"] = "auto"
        entries.append(entry if len(entry) > 1 else path)
        known = [name for name in seen.carry if name == "rollout_logp"]
        carry |= dict.fromkeys(known)
        possible |= dict.fromkeys(name for name in seen.carry if name not in known)
    return entries, [*carry], [*possible]


def _as_run_id(name: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:63] or "my-first-run"

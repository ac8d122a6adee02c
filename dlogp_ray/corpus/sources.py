"""The files of a corpus, entry by entry, and how rows are made of each."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from dlogp_ray.config.corpus import CorpusEntry
from dlogp_ray.corpus.files import CorpusFile, list_corpus
from dlogp_ray.corpus.mapping import AUTO, RowMap, root_of
from dlogp_ray.errors import Refused


def list_sources(entries: Sequence[CorpusEntry]) -> tuple[list[CorpusFile], tuple[RowMap, ...]]:
    """All files of a corpus, once, and for each entry how rows are made of its records.

    Args:
        entries: Completed, with absolute addresses.

    Raises:
        Refused: As ``list_corpus``; two entries say other things of one file, or would give the
            rows of two files the same ids.
    """
    files: dict[str, CorpusFile] = {}
    maps = []
    for number, entry in enumerate(entries):
        listed = list_corpus([entry.path])
        maps.append(RowMap(entry, root_of(entry.path, listed[0].uri)))
        for file in listed:
            first = entries[files.setdefault(file.uri, replace(file, source=number)).source]
            if first.model_copy(update={"path": entry.path}) != entry:
                raise Refused(
                    f"corpus {file.uri}: the entries {first.path} and {entry.path} both name it, "
                    "and say other things of it; leave it to one of them"
                )
    _check_ids(files.values(), maps)
    return list(files.values()), tuple(maps)


def _check_ids(files: Iterable[CorpusFile], maps: Sequence[RowMap]) -> None:
    """Refuse two files of which ``sample_id: auto`` makes the same ids."""
    named: dict[str, str] = {}
    for file in files:
        row_map = maps[file.source]
        if row_map.entry.sample_id == AUTO or row_map.form is not None:
            first = named.setdefault(row_map.name_of(file.uri), file.uri)
            if first != file.uri:
                raise Refused(
                    f"sample_id: auto: {first} and {file.uri} are both called "
                    f"{row_map.name_of(file.uri)!r} below their entries, so that their rows would "
                    "have the same ids: name them by one entry (a folder or glob above both), or "
                    "give each entry its constants: {generator: NAME}, which ids begin with"
                )

"""What a table was made from: the content of another, in one hash."""

import hashlib

from dlogp_ray.tables.stored import StoredRun


def source_hash(run: StoredRun) -> str:
    """SHA-256 (hex) over the units of a sealed run and the hashes of their content.

    The same as long as the rows are: copying a run, or scoring a damaged unit again, keeps it.
    """
    manifest = run.manifest().select(["unit", "content_hash"]).sort_by("unit")
    digest = hashlib.sha256()
    for batch in manifest.to_batches(max_chunksize=1_000):
        for row in batch.to_pylist():
            digest.update(f"{row['unit']}:{row['content_hash']}\n".encode())
    return digest.hexdigest()

"""One object of a table, opened to be read a column or some rows at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from dlogp_ray import store
from dlogp_ray.errors import Damaged


@contextmanager
def open_object(uri: str) -> Iterator[pq.ParquetFile]:
    """The object's Parquet file; page checksums are verified as it is read.

    Raises:
        Damaged: It can't be opened, or what is read of it in the context is not whole.
    """
    filesystem, path = store.open_store(uri, read_ahead=False)  # pyarrow does
    try:
        with filesystem.open(path, "rb") as raw:
            yield pq.ParquetFile(raw, page_checksum_verification=True, pre_buffer=True)
    except (OSError, pa.ArrowException) as error:
        raise Damaged(
            f"{uri} can't be read ({error}); `dlogp verify` tells what else is damaged, and what "
            "to do"
        ) from None

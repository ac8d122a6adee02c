"""One object of a table, opened to be read a column or some rows at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from dlogp_ray import store
from dlogp_ray.errors import Damaged


@dataclass(frozen=True)
class TableObject:
    """An object as it is to be read.

    Attributes:
        unit: Whose it is.
        uri: Its address.
        entry: The version that was found to be the run's.
    """

    unit: str
    uri: str
    entry: store.Entry


@contextmanager
def open_object(part: TableObject) -> Iterator[pq.ParquetFile]:
    """The object's Parquet file; page checksums are verified as it is read.

    Raises:
        Damaged: It is another one by now, can't be opened, or what is read of it in the context is
            not whole.
    """
    try:
        with store.opened(part.uri, part.entry, read_ahead=False) as raw:  # pyarrow does
            yield pq.ParquetFile(raw, page_checksum_verification=True, pre_buffer=True)
    except store.Changed as error:
        raise Damaged(f"{error}: it was changed while the run was read; do that again") from None
    except (OSError, pa.ArrowException) as error:
        raise Damaged(
            f"{part.uri} can't be read ({error}); `dlogp verify` tells what else is damaged, and "
            "what to do"
        ) from None

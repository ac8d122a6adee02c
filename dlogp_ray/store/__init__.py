"""Objects on a local disk and in any store that fsspec knows: how every room reads and writes."""

from dlogp_ray.store.ahead import map_ahead
from dlogp_ray.store.objects import (
    Entry,
    absolute,
    check_writable,
    create,
    delete,
    etag,
    exists,
    is_local,
    list_objects,
    move,
    open_store,
    read,
    read_range,
    refusals,
    replace,
)

__all__ = [
    "Entry",
    "absolute",
    "check_writable",
    "create",
    "delete",
    "etag",
    "exists",
    "is_local",
    "list_objects",
    "map_ahead",
    "move",
    "open_store",
    "read",
    "read_range",
    "refusals",
    "replace",
]

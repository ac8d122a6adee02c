"""Objects on a local disk and in any store that fsspec knows: how every room reads and writes."""

from dlogp_ray.store.objects import (
    absolute,
    check_writable,
    create,
    delete,
    etag,
    exists,
    is_local,
    list_objects,
    open_store,
    read,
    replace,
)

__all__ = [
    "absolute",
    "check_writable",
    "create",
    "delete",
    "etag",
    "exists",
    "is_local",
    "list_objects",
    "open_store",
    "read",
    "replace",
]

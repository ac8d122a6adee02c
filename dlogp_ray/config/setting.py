"""Fields of a job file, set from a command line: ``--set FIELD=VALUE``."""

from collections.abc import Sequence
from typing import Any

import yaml

from dlogp_ray.errors import Refused


def set_fields(values: dict[Any, Any], settings: Sequence[str]) -> None:
    """Replace fields, or add them.

    Args:
        values: Of a job file; those of fields in fields are copied.
        settings: ``FIELD=VALUE``: VALUE is YAML; a dot in FIELD leads into a field's own fields.

    Raises:
        Refused: One is not so spelled, or leads into what has no fields.
    """
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path:
            raise Refused(f"--set {setting}: expected FIELD=VALUE, as in --set temperature=0.7")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise Refused(f"--set {setting}: the value is not valid YAML; quote text") from None
        *above, name = path.split(".")
        inner = values
        for part in above:
            below = inner.get(part)
            if below is not None and not isinstance(below, dict):
                raise Refused(f"--set {setting}: {part} has no fields of its own")
            inner[part] = dict(below or {})
            inner = inner[part]
        inner[name] = value

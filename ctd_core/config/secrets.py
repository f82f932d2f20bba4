"""Secrets in what a user writes: found before they are stored anywhere, and left out of what is shown."""

import re
from collections.abc import Iterator
from typing import Any

SECRET_NAME = re.compile(
    r"(?i)(^|[_-])(secret|password|passwd|pwd|token|sig|signature|credentials?|(api|access|account|secret|private)[_-]?key)"
    r"([_-]|$)|secretkey|accesskey|accountkey|apikey"
)
WITH_PASSWORD = re.compile(r"(\w+://)[^\s/@:]*:[^\s/@]+@")
KEY_OF_STORE = re.compile(r"((?:s3|gs|gcs)://)(?:[^\s/@]+|[^\s/@:]+:[^\s@]*)@")  # a secret key may hold slashes
QUERY = re.compile(r"([?&;])([^=&;\s]+)=([^&;\s]+)")


def has_secret(text: str) -> bool:
    """Whether `text` is a URI with a password or a key in it.

    A user or a container alone (`hdfs://user@host`, `abfs://container@account`) is none.
    """
    if "://" not in text:
        return False
    if WITH_PASSWORD.search(text) or KEY_OF_STORE.search(text):
        return True
    return any(SECRET_NAME.search(one[2]) for one in QUERY.finditer(text))


def fields_with_secrets(values: Any, path: str = "") -> Iterator[str]:
    """The dotted paths of all strings within `values` that hold a secret."""
    if isinstance(values, str):
        if has_secret(values):
            yield path
    elif isinstance(values, dict | list | tuple):
        items = values.items() if isinstance(values, dict) else enumerate(values)
        for key, value in items:
            yield from fields_with_secrets(value, f"{path}.{key}" if path else str(key))


def redact(text: str) -> str:
    """`text` with `***` in place of every secret in a URI."""
    if "://" not in text:
        return text
    text = KEY_OF_STORE.sub(r"\1***@", WITH_PASSWORD.sub(r"\1***@", text))
    return QUERY.sub(lambda one: f"{one[1]}{one[2]}={'***' if SECRET_NAME.search(one[2]) else one[3]}", text)

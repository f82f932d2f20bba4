"""Secrets in what a user writes: found before they are stored anywhere, and left out of what is shown."""

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

SECRET_WORDS = {
    "secret", "password", "passwd", "passphrase", "pwd", "token", "sig", "signature", "credential", "credentials",
    "auth", "sas", "jwt", "key", "secretkey", "accesskey", "accountkey", "apikey", "privatekey", "pass", "pw", "bearer",
    "tok",
}  # fmt: skip
WITH_PASSWORD = re.compile(r"(\w+://?)[^\s/@:]*:(?!\d+/)[^\s@]+@")  # a password may hold slashes, a port is none
TOKEN_AS_USER = re.compile(r"(https?://?)[^\s/@]+@")
WELL_KNOWN = re.compile(
    r"hf_[A-Za-z0-9]{30,}|gh[oprsu]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|glpat-[\w-]{20,}|(?<![A-Za-z0-9])sk-[\w-]{40,}"
    r"|(?<![A-Z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])"
)
KEY_OF_STORE = re.compile(r"((?:s3|gs|gcs)://?)(?:[^\s/@]+|[^\s/@:]+:[^\s@]*)@")  # a secret key may hold slashes
NO_KEYS = (
    "a key, or a URI with one in it, would be shown in messages and stored with the run: leave the key out, and set "
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, HF_TOKEN, or what your store reads"
)
QUERY = re.compile(r"([?&;#])([^=&;#\s]+)=([^&;#\s]+)")


def has_secret(text: str) -> bool:
    """Whether `text` is a URI with a password or a key in it, be it one of a single slash, as a path leaves it.

    A user or a container alone (`hdfs://user@host`, `abfs://container@account`) is none; a key of a well-known form
    is one in any text.
    """
    if WELL_KNOWN.search(text):
        return True
    if ":/" not in text:
        return False
    if any(pattern.search(text) for pattern in (WITH_PASSWORD, KEY_OF_STORE, TOKEN_AS_USER)):
        return True
    return any(_is_secret(match[2]) for match in QUERY.finditer(text))


def _is_secret(name: str) -> bool:
    """Whether a parameter of this name holds a secret: one of its words says so, in whatever spelling."""
    words = re.sub(r"([a-z0-9])([A-Z])", r"\1-\2", unquote(name))
    return not SECRET_WORDS.isdisjoint(re.split(r"[^a-z0-9]+", words.lower()))


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
    """`text` with `***` in place of every secret that `has_secret` knows."""
    text = WELL_KNOWN.sub("***", text)
    if ":/" not in text:
        return text
    for pattern in (WITH_PASSWORD, KEY_OF_STORE, TOKEN_AS_USER):
        text = pattern.sub(r"\1***@", text)
    return QUERY.sub(lambda match: f"{match[1]}{match[2]}={'***' if _is_secret(match[2]) else match[3]}", text)

"""What stands for a model's content. Light to import: it reads files and no model."""

import hashlib
from pathlib import Path

from ctd_core.errors import CtdError

TRANSFER_VERSION = 6  # of what models.transfer calculates: raised where the same inputs give another student
WEIGHT_SUFFIXES = {".safetensors", ".bin", ".json", ".txt", ".model", ".tiktoken", ".jinja", ".py", ".gguf"}


def weights_fingerprint(name: str, revision: str | None) -> str:
    """SHA-256 over the weights, configs and tokenizer of a local directory; a hub id stands for itself."""
    folder = Path(name)
    if not folder.is_dir():
        return f"{name}@{revision}"
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.suffix in WEIGHT_SUFFIXES:
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def loaded_fingerprint(name: str) -> str:
    """As weights_fingerprint, with the commit that a hub id stands for today: its main branch moves on."""
    if Path(name).is_dir():
        return weights_fingerprint(name, None)
    from transformers.utils.hub import cached_file, extract_commit_hash  # takes seconds

    try:
        return f"{name}@{extract_commit_hash(cached_file(name, 'config.json'), None)}"
    except OSError:  # loading it will say so
        return weights_fingerprint(name, None)


def check_unchanged(name: str, revision: str | None, expected: str) -> None:
    """Raises CtdError where the fingerprint of a model that has just been loaded is not the expected one."""
    if weights_fingerprint(name, revision) != expected:
        raise CtdError(f"{name}: its files have changed since the command began. Run it again.")

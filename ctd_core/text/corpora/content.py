"""What stands for the content of a corpus."""

import hashlib
import logging
from pathlib import Path

from ctd_core.storage.locations import is_uri, size_and_time
from ctd_core.text.corpora import CorpusSlice

logger = logging.getLogger(__name__)
READ_BYTES = 256 * 2**20  # a corpus of up to this is known by its content, so that a copy of it is the same corpus


def content_fingerprint(files: list[str], slices: list[CorpusSlice]) -> str:
    """SHA-256 over what a corpus holds.

    Files count by name and content (those of a large corpus, and remote ones, by size and time), texts that lie in no
    files by themselves.

    Args:
        files: those that it is read from, see `corpus_files`.
        slices: all of its slices.

    Returns:
        Hexadecimal digits.

    Raises:
        FileNotFoundError: a file is not there.
    """
    digest = hashlib.sha256()
    found = {file: size_and_time(file) for file in files}
    is_small = sum(size for size, _ in found.values()) <= READ_BYTES
    if found and (not is_small or any(map(is_uri, found))):
        logger.info("corpus: %d files are known by size and time of change: their content is not compared", len(found))
    for file, (size, changed) in found.items():
        is_read = is_small and not is_uri(file)
        content = hashlib.sha256(Path(file).read_bytes()).hexdigest() if is_read else changed
        digest.update(repr((file, size, content)).encode())
    for part in slices:
        digest.update(repr((part.source, part.start, part.stop)).encode())
        for document in part.documents:
            digest.update(document.text.encode(errors="surrogatepass") + b"\0")
    return digest.hexdigest()

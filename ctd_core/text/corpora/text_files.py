"""UTF-8 text files, each one document. A slice is a range of files."""

from collections.abc import Iterator

from ctd_core.config.text import TextFiles
from ctd_core.errors import CtdError
from ctd_core.storage.locations import size_and_time
from ctd_core.text.corpora.files import matching_files, open_file
from ctd_core.text.corpora.slices import CorpusSlice, runs_by_size
from ctd_core.text.documents import Document, plain_document


def plan(corpus: TextFiles, slice_bytes: int) -> Iterator[CorpusSlice]:
    """Ranges of files."""
    start = 0
    for number, files in enumerate(
        runs_by_size(matching_files(corpus.paths), lambda file: size_and_time(file)[0], slice_bytes)
    ):
        yield CorpusSlice(number, "", start, start + len(files), files=tuple(files))
        start += len(files)


def read(corpus: TextFiles, part: CorpusSlice) -> Iterator[Document]:
    """A document a file; raises CtdError for one that is not UTF-8."""
    for file in part.files:
        with open_file(file) as stream:
            content = stream.read()
        try:
            yield plain_document(file, content.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise CtdError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start}). Convert it.") from error

"""UTF-8 text files, each one document. A slice is a range of files."""

from collections.abc import Iterator

from ctd_core.config.text import TextFiles
from ctd_core.errors import CtdError
from ctd_core.storage.locations import size_and_time
from ctd_core.text.corpora.files import matching_files, open_file
from ctd_core.text.corpora.slices import CorpusSlice, cut_by_size
from ctd_core.text.documents import Document, plain_document


def plan(corpus: TextFiles, slice_bytes: int) -> Iterator[CorpusSlice]:
    """Ranges of files."""
    files = matching_files(corpus.paths)
    sizes = [size_and_time(file)[0] for file in files]
    for number, (start, stop) in enumerate(cut_by_size(sizes, slice_bytes)):
        yield CorpusSlice(number, "", start, stop, files=tuple(files[start:stop]))


def read(corpus: TextFiles, part: CorpusSlice) -> Iterator[Document]:
    """A document a file; raises CtdError for one that is not UTF-8."""
    for file in part.files:
        with open_file(file) as stream:
            content = stream.read()
        try:
            yield plain_document(file, content.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise CtdError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start}). Convert it.") from error

"""A store that speaks S3's protocol, on this machine."""

from collections.abc import Iterator
from contextlib import contextmanager

from moto.server import ThreadedMotoServer
from pyarrow import fs


@contextmanager
def s3_store(bucket: str) -> Iterator[tuple[str, str]]:
    """The URI of an empty bucket, up to its keys, and what has to follow them: `head + key + tail` is a location."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        tail = f"?region=us-east-1&scheme=http&endpoint_override={host}:{port}&allow_bucket_creation=true"
        head = f"s3://key:secret@{bucket}"
        files, path = fs.FileSystem.from_uri(head + tail)
        files.create_dir(path)
        yield head, tail
    finally:
        server.stop()

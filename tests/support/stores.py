"""A store that speaks S3's protocol, on this machine."""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from moto.server import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from pyarrow import fs
from werkzeug.serving import make_server


class Troubled:
    """A web application that is slow at times, and answers a share of its requests with 500 before it does them.

    The same request is refused once: whoever asks again is served. refused: how often it was.
    """

    def __init__(self, app: Callable[..., Any], share: float) -> None:
        self._app, self._share, self._random = app, share, random.Random(0)
        self._known: set[tuple[str, ...]] = set()
        self.refused = 0

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        request = tuple(environ.get(name, "") for name in ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING"))
        if request not in self._known:
            self._known.add(request)
            if self._random.random() < self._share:
                self.refused += 1
                time.sleep(self._random.uniform(0, 0.3))
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start_response("500 Internal Server Error", [("Content-Length", "0")])
                return [b""]
        return self._app(environ, start_response)


@contextmanager
def s3_store(bucket: str, troubles: float = 0.0) -> Iterator[tuple[str, str, Troubled]]:
    """The URI of an empty bucket, up to its keys, and what has to follow them: `head + key + tail` is a location.

    troubles: the share of requests that are refused at first. The third is what refuses them.
    """
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = Troubled(DomainDispatcherApplication(create_backend_app), troubles)
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        place = f"127.0.0.1:{server.server_port}"
        tail = f"?region=us-east-1&scheme=http&endpoint_override={place}&allow_bucket_creation=true"
        head = f"s3://{bucket}"
        files, path = fs.FileSystem.from_uri(head + tail)
        files.create_dir(path)
        yield head, tail, app
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

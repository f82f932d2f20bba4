"""The memory that preparing takes, by the size of the corpus: it has to stay the same."""

import argparse
import json
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import psutil

from pipelines.cluster.connection import connect, stop_local_ray
from pipelines.stages.prepare import prepare
from tests.benchmarks.source import standard_library_source
from tests.benchmarks.texts import run_without_targets, train_tokenizers

SECONDS_BETWEEN_LOOKS = 0.5
MIB = 2**20


def resident_bytes() -> int:
    """What this process and all below it hold for themselves: not the object store, which they share (Linux)."""
    total = 0
    here = psutil.Process()
    for process in (here, *here.children(recursive=True)):
        with suppress(psutil.Error):  # it ended meanwhile
            total += process.memory_full_info().uss
    return total


def peak_of_preparing(folder: Path, corpus: Path) -> int:
    """The peak of `resident_bytes` while `prepare` makes shards, without targets, of `corpus`."""
    done, looks = threading.Event(), [0]

    def look() -> None:
        while not done.wait(SECONDS_BETWEEN_LOOKS):
            looks.append(resident_bytes())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        connect(1, 0, "")
        prepare(run_without_targets(folder, corpus))
    finally:
        done.set()
        thread.join()
        stop_local_ray()
    return max(looks)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("megabytes", type=int, nargs="*", default=[100, 300, 1000], help="sizes of the corpus")
    sizes = parser.parse_args().megabytes
    texts = standard_library_source()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train_tokenizers(texts, folder)
        first = None
        for megabytes in sizes:
            corpus = folder / f"{megabytes}.jsonl"
            with corpus.open("w") as stream:
                written = number = 0
                while written < megabytes * 10**6:
                    written += stream.write(json.dumps({"text": texts[number % len(texts)]}) + "\n")
                    number += 1
            peak = peak_of_preparing(folder, corpus)
            first = first or peak
            print(f"{megabytes} MB of text: {peak / MIB:.0f} MiB at most, {peak / first:.2f} of the first", flush=True)


if __name__ == "__main__":
    main()

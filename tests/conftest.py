"""One thread for the tests' tiny tensors: more would wait for each other. Nothing is kept in the user's own cache."""

import os
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["CTD_CACHE"] = tempfile.mkdtemp(prefix="ctd-cache-")

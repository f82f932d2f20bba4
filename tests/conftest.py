"""What all tests have in their environment."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: more threads would wait for each other
os.environ["RAY_AUTH_TOKEN"] = "0123456789abcdef" * 4  # Ray reads it once a process, and otherwise from its home
os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}  # of tests.stores
os.environ.setdefault("HF_HUB_OFFLINE", "1")

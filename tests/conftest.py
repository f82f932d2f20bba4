"""What all tests have in their environment."""

import os
from collections import Counter

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: more threads would wait for each other
os.environ["RAY_AUTH_TOKEN"] = "0123456789abcdef" * 4  # Ray reads it once a process, and otherwise from its home
os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}  # of tests.support.stores
os.environ.setdefault("HF_HUB_OFFLINE", "1")
settings.register_profile("no deadline", deadline=None)  # a busy machine is no fault
settings.register_profile("fast", deadline=None, max_examples=25)  # `make test-fast`
settings.load_profile("no deadline")


@pytest.fixture
def faults(request):
    """What a test did to what it tests: it adds a few words for each; the end of the session counts them."""
    injected: list[str] = []
    request.node.user_properties.append(("faults", injected))
    return injected


def pytest_terminal_summary(terminalreporter):
    """Say which faults the tests have injected that passed in spite of them."""
    survived = Counter(
        fault
        for report in terminalreporter.getreports("passed")
        for name, injected in report.user_properties
        if name == "faults"
        for fault in injected
    )
    if survived:
        terminalreporter.write_line(f"{survived.total()} faults injected and survived:")
        for fault, times in survived.most_common():
            terminalreporter.write_line(f"{times:5} × {fault}")

"""ctd_core works where Ray is not installed."""

import subprocess
import sys

import pytest

CODE = """
import sys
sys.modules["ray"] = None  # an import of it now fails
import importlib, pkgutil
import ctd_core
names = [module.name for module in pkgutil.walk_packages(ctd_core.__path__, "ctd_core.")]
for name in names:
    importlib.import_module(name)
assert not any(name.split(".")[0] in {"ray", "pipelines"} and sys.modules[name] for name in list(sys.modules))
print(len(names))
"""


@pytest.mark.slow
def test_every_module_of_ctd_core_imports_without_ray():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 25

"""A Ray head of one's own, started and ended as a user would, beside any other Ray on the machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

RAY = str(Path(sys.executable).with_name("ray"))
PROVIDER = Path(__file__).with_name("cloud")  # a folder with the module of the machines alone


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, below those that Ray gives to its workers; another process finds others."""
    found: list[int] = []
    for port in range(7000 + os.getpid() * 16 % 2600, 9900):
        if not _listens(port):
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no free ports")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _fake_machines(node_types: dict[str, Any], gcs: str) -> dict[str, Any]:
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    return {
        "cluster_name": "fake",
        "max_workers": 8,
        "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "external",
            "module": "fake_machines.FakeMachines",
            "gcs_address": gcs,
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
        },
        "available_node_types": {"ray.head.default": head, **node_types},
        "head_node_type": "ray.head.default",
        **{"auth": {}, "docker": {}, "upscaling_speed": 1.0},
        **{"file_mounts": {}, "file_mounts_sync_continuously": False, "cluster_synced_files": []},
        **{"rsync_exclude": [], "rsync_filter": []},
        **{f"{kind}_commands": [] for kind in ("initialization", "setup", "head_setup", "worker_setup")},
        **{f"{kind}_start_ray_commands": [] for kind in ("head", "worker")},
    }


@contextmanager
def ray_head(
    folder: Path, *options: str, autoscaling: dict[str, Any] | None = None, dashboard: bool = True
) -> Iterator[dict[str, str]]:
    """A head with token authentication; the environment that commands for it need.

    dashboard: jobs need it.
    autoscaling: node types by name; machines of them are processes here that come and go as the work asks.
    """
    ports = free_ports(4)
    environment = os.environ | {"RAY_AUTH_MODE": "token"}  # see conftest
    environment["PATH"] = "/usr/bin:/bin"  # Ray's interpreter is not on it, nor need it be
    if autoscaling is not None:
        file = folder / "autoscaling.json"
        file.write_text(json.dumps(_fake_machines(autoscaling, f"127.0.0.1:{ports[0]}")))
        options += (f"--autoscaling-config={file}",)
        environment |= {
            **{"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": "1"},
            **{"RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID},
            "PYTHONPATH": str(PROVIDER),
        }
    # A machine that is gone is missed after two seconds, and not after fifteen.
    environment |= {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "4"}
    environment.pop("RAY_ADDRESS", None)
    command = [
        *(RAY, "start", "--head", "--block", "--disable-usage-stats", f"--include-dashboard={dashboard}"),
        *(f"--port={ports[0]}", f"--dashboard-port={ports[1]}", f"--ray-client-server-port={ports[2]}"),
        *(f"--dashboard-agent-listen-port={ports[3]}", f"--temp-dir=/tmp/ctd-{os.getpid()}", *options),
    ]
    with (folder / "head.log").open("w") as log, _running(command, environment, log) as head:
        deadline = time.monotonic() + 180
        address, gcs = f"http://127.0.0.1:{ports[1]}", f"127.0.0.1:{ports[0]}"
        takes_jobs = [RAY, "job", "list", "--address", address]
        while not _listens(ports[0]) or (
            dashboard and subprocess.run(takes_jobs, env=environment, capture_output=True).returncode
        ):
            if head.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the head did not start: {(folder / 'head.log').read_text()}")
            time.sleep(0.5)
        yield environment | {"RAY_API_SERVER_ADDRESS": address, "GCS": gcs}


@contextmanager
def machine_of(head: dict[str, str]) -> Iterator[subprocess.Popen]:
    """A machine of one CPU that joins `head`; a SIGKILL for its process group is its sudden end."""
    command = [RAY, "start", f"--address={head['GCS']}", "--num-cpus=1", "--block", "--disable-usage-stats"]
    with _running(command, head, subprocess.DEVNULL) as machine:
        yield machine


@contextmanager
def _running(command: list[str], environment: dict[str, str], log: Any) -> Iterator[subprocess.Popen]:
    started = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield started
    finally:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)  # Ray's workers end when it is gone
        started.wait()

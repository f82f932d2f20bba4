"""`ctd submit`: a command run on a cluster, as a Ray job whose log is shown here and whose exit status is ours."""

import asyncio
import logging
import shlex
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from ctd_core.config.secrets import has_secret
from ctd_core.errors import CtdError, Interrupted, UsageError

logger = logging.getLogger(__name__)

SECONDS_OF_SILENCE = 60
COMMAND = "command"  # of a job's metadata: what it runs, as it was typed
# The interpreter that Ray's own workers have on a job's machine, where PATH need not have it: the process that started
# the job's parent has it in its command line. Without /proc, whatever is called python.
RAYS_PYTHON = (
    r"$(tr '\0' '\n' </proc/$(awk '/^PPid/ {print $2}' /proc/$PPID/status)/cmdline"
    r" | sed -n 's/^--python_worker_command=\([^ ]*\) .*/\1/p' | grep . || echo python)"
)
TOO_LARGE = ("Maximum request body size", "exceeds the maximum size")  # Ray's words, of the cluster and of its client
EXCLUDED = [".git", ".venv", "runs", "__pycache__"]  # of the directory that is sent; what git ignores is too


def submit(
    address: str,
    command: list[str],
    job: str | None,
    working_directory: Path,
    cpus: float,
    gpus: float,
    stop_on_interrupt: bool,
) -> int:
    """Start `command` as the job `job`, or follow it where it is there already, to its end; its exit status.

    Raises UsageError where there is neither a command nor a job, or the job runs another command; CtdError where the
    cluster cannot be reached, or this process was interrupted, which leaves the job alone unless `stop_on_interrupt`.
    """
    for module in ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
        logging.getLogger(module).setLevel(logging.ERROR)
    if any(has_secret(word) for word in command):
        raise UsageError(
            "the command holds a key, or a URI with one in it, which the cluster would keep and show: leave it out, "
            "and give the machines what your store reads, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "HF_TOKEN"
        )
    client = _client(address)
    typed = shlex.join(["ctd", *command])
    running = _running(client, address, job)
    if running is None:
        if not command:
            raise UsageError(
                f"{job}: {address} has no such job." if job else "give a command after --, such as -- run --config FILE"
            )
        job = _start(client, command, job, working_directory, cpus, gpus)
        logger.info(f"submit: {job} runs {typed}")
    elif command and typed != _command(running):
        raise UsageError(f"{job}: this job runs {_command(running)}. Give another --job, or leave the command out.")
    elif running.status.is_terminal():
        logger.info(f"submit: {job} has ended already; this is its log. Give another --job to run it again.")
    else:
        logger.info(f"submit: following {job}, which runs {_command(running)}")
    try:
        with _raising_interrupts():
            ended = asyncio.run(_follow(client, str(job)))
    except KeyboardInterrupt:
        if stop_on_interrupt:
            client.stop_job(str(job))
            while not client.get_job_info(str(job)).status.is_terminal():
                time.sleep(0.5)
            raise Interrupted(f"{job} was stopped.") from None
        raise Interrupted(
            f"{job} goes on. Follow it: ctd submit --address {address} --job {job}. Stop it: ray job stop {job}."
        ) from None
    return _exit_status(ended)


@contextmanager
def _raising_interrupts() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt at once: asyncio would cancel a task, and what this awaits may swallow that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _running(client: JobSubmissionClient, address: str, job: str | None) -> JobDetails | None:
    """The job of this name, None where there is none."""
    if job is None:
        return None
    try:
        return {details.submission_id: details for details in client.list_jobs()}.get(job)
    except (RuntimeError, OSError) as error:
        raise CtdError(f"{address}: the cluster did not list its jobs ({error}).") from error


def _start(
    client: JobSubmissionClient, command: list[str], job: str | None, working_directory: Path, cpus: float, gpus: float
) -> str:
    """Submit `command`; the name of its job."""
    try:
        name: str = client.submit_job(
            entrypoint=f"{RAYS_PYTHON} -m pipelines {shlex.join(command)}",
            submission_id=job,
            metadata={COMMAND: shlex.join(["ctd", *command])},
            runtime_env={"working_dir": str(working_directory), "excludes": EXCLUDED},
            entrypoint_num_cpus=cpus,
            entrypoint_num_gpus=gpus,
        )
    except (RuntimeError, OSError, ValueError) as error:
        advice = (
            " Large files, such as models, are not sent along: put them where all machines find them, and name them in "
            ".gitignore, or send another directory by --working-dir."
            if any(said in str(error) for said in TOO_LARGE)
            else ""
        )
        raise CtdError(f"{working_directory}: the job could not be submitted ({error}).{advice}") from error
    return name


def _client(address: str) -> JobSubmissionClient:
    try:
        return JobSubmissionClient(address)
    except Exception as error:  # ConnectionError, RuntimeError, errors of authentication
        raise CtdError(
            f"{address}: no cluster answers there ({str(error).strip().splitlines()[0]}). Give the address of its "
            "dashboard, and its token where it asks for one: RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE."
        ) from error


def _command(job: JobDetails) -> str:
    return str((job.metadata or {}).get(COMMAND, job.entrypoint))


async def _follow(client: JobSubmissionClient, job: str) -> JobDetails:
    """Print the log of a job until it has ended; a connection that breaks is taken up again, for a minute."""
    shown = tries = 0
    while True:
        seen = 0
        try:
            async for text in client.tail_job_logs(job):
                print(text[max(0, shown - seen) :], end="", flush=True)
                seen += len(text)
                if seen > shown:
                    shown, tries = seen, 0
            details: JobDetails = client.get_job_info(job)
            if details.status.is_terminal():
                return details
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            tries += 1
            if tries > SECONDS_OF_SILENCE:
                raise CtdError(f"{job}: the cluster does not answer any more ({error}).") from error
        await asyncio.sleep(1.0)


def _exit_status(ended: JobDetails) -> int:
    """The job's own, or 1 where it failed without one; as a shell has it where a signal ended it."""
    if ended.status == JobStatus.SUCCEEDED:
        return 0
    if ended.driver_exit_code is None:
        logger.info(f"submit: {ended.submission_id} has {ended.status}: {ended.message}")
    code = ended.driver_exit_code or 1
    return 128 - code if code < 0 else code

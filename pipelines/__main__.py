"""`ctd`, which is `python -m pipelines` too. Light, so that a Ctrl-C while the rest is imported ends as a later one."""

import signal
import sys

STOPPED = 130  # the exit status that typer gives to KeyboardInterrupt


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM ends a command as Ctrl-C does
    try:
        from pipelines.cli import run_command_line
    except KeyboardInterrupt:
        print("ctd: stopped", file=sys.stderr)
        sys.exit(STOPPED)
    run_command_line()


if __name__ == "__main__":
    main()

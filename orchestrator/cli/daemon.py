"""orchestratord: reads the settings, checks the host, and hands over to the supervisor.

Exit codes, all of them:

     0  ended on request: drained, or stopped at once by a second signal
     1  an error that nobody expected; the traceback is on standard error
     2  wrong use of the command line
    70  internal error: a process that the daemon cannot do without keeps dying
    75  for now: the database or its schema is not usable, or the node was refused; the
        message says which, and starting again later may succeed
    78  the configuration, or this host, is unfit; starting again will not help

What the supervisor returns is passed on. It is imported after the checks only, so that what it
requires of the host is named before it can fail.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import click

from orchestrator import __version__, config, config_text
from orchestrator.config import Settings
from orchestrator.errors import ConfigError

EXIT_CONFIGURATION = 78


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-c",
    "--config",
    "path",
    metavar="FILE",
    help="The configuration. Without it: $ORCHESTRATOR_CONFIG, ./orchestrator.toml, "
    "./conf/orchestrator.toml, /etc/orchestrator/orchestrator.toml, else the defaults.",
)
@click.option(
    "--check-config", is_flag=True, help="Read and check the settings, print the errors, and exit."
)
@click.option(
    "--print-config",
    is_flag=True,
    help="Print all settings with origin and unit, as a file that -c reads, and exit.",
)
@click.version_option(__version__, prog_name="orchestratord", message="%(prog)s %(version)s")
@click.pass_context
def main(context: click.Context, path: str | None, check_config: bool, print_config: bool) -> None:
    """Run tasks kept in PostgreSQL in a supervised pool of worker processes.

    Stays in the foreground and logs to standard error. TERM drains and ends, INT ends at once.
    Exit codes: 0 ended on request, 1 unexpected error, 2 usage, 70 internal error, 75 database
    not usable for now, 78 configuration error.
    """
    if check_config or print_config:
        context.exit(_look(path, config_text.write if print_config else _all_right))
    context.exit(_run(path))


def _look(path: str | None, told: Callable[[Settings], str]) -> int:
    """Read the settings, print what is told of them, and start nothing."""
    try:
        settings = config.load(path)
    except ConfigError as error:
        return _refuse(error)
    for deprecated in settings.deprecated:
        click.echo(f"orchestratord: warning: {deprecated}", err=True)
    click.echo(told(settings), nl=False)
    return 0


def _all_right(settings: Settings) -> str:
    files = ", ".join(settings.files)
    return f"ok: {files or 'no configuration file, all settings have their defaults'}\n"


def _run(path: str | None) -> int:
    try:
        settings = config.load(path)
        check_host()
        return _supervisor()(settings)
    except ConfigError as error:
        return _refuse(error)


def _supervisor() -> Callable[[Settings], int]:
    from orchestrator.processes.supervisor import run

    return run


def _refuse(error: ConfigError) -> int:
    click.echo(f"orchestratord: {error}", err=True)
    return EXIT_CONFIGURATION


def check_host() -> None:
    """Check that the kernel has what the supervisor is built on.

    Raises:
        ConfigError: not Linux, or a Linux without process descriptors that can be waited for.
    """
    needed = "orchestratord needs Linux >= 5.4 (pidfd_open, and waitid on its descriptors)"
    remedy = (
        "run it there; the client, orchestratorctl and orchestrator.testing work here as well, "
        "against a database elsewhere"
    )
    if not sys.platform.startswith("linux"):
        raise ConfigError(f"{needed}, and this is {sys.platform}: {remedy}")
    release = os.uname().release
    if not hasattr(os, "pidfd_open") or not hasattr(os, "P_PIDFD"):
        raise ConfigError(
            f"{needed}, and this Python was built for an older system: use one built on a newer one"
        )
    if not _has_waitable_pidfds():
        raise ConfigError(f"{needed}, and this is Linux {release}: {remedy}")


def _has_waitable_pidfds() -> bool:
    # Asking says more than a version number: sandboxes and vendors' kernels differ from theirs.
    try:
        pidfd = os.pidfd_open(os.getpid())
    except OSError:
        return False
    try:
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        # Understood, and we are no child of ourselves. A kernel before 5.4 says EINVAL.
        return True
    except OSError:
        return False
    finally:
        os.close(pidfd)
    return True


if __name__ == "__main__":
    main()

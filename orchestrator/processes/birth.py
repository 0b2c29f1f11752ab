"""What the children that a supervisor starts by exec do first, alike.

`begin()` ties the process to its supervisor, sets its name and its log; what follows is the own
business of each kind.
"""

from __future__ import annotations

import signal

from orchestrator import config, logs
from orchestrator.processes import identity
from orchestrator.processes.identity import Place


def begin(*, dies_with_supervisor: bool = True) -> tuple[Place, config.Settings]:
    """Take the place that the supervisor gave this process; return it with the settings.

    Keeper and steward outlive the supervisor for a moment: they watch the life pipe instead of
    dying with it.
    """
    place = Place.here()
    settings = place.settings()
    if dies_with_supervisor:
        identity.arm_parent_death_signal(place.supervisor_pid, signal.SIGKILL)
    identity.set_title(f"orc-{place.kind}")
    logs.configure(settings.logging, identity=place.identity())
    return place, settings

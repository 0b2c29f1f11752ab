"""The one-shot check: is the schema one that this version can work with?

With the embedded database it migrates, since nobody else uses that database. With a server it only
looks, and the daemon ends with the word of what to run. It waits for a server that is not there
yet: a container often starts before its database.
"""

from __future__ import annotations

import sys
import time

from orchestrator import logs
from orchestrator.db import migrate
from orchestrator.db.connection import Backoff
from orchestrator.errors import DatabaseUnavailable, OrchestratorError
from orchestrator.processes.birth import begin
from orchestrator.processes.messages import EXIT_TEMPORARY
from orchestrator.processes.sessions import open_session

log = logs.get("check")


def main() -> int:
    _, settings = begin()
    backoff = Backoff()
    while True:
        try:
            session = open_session(settings, "check", direct=True)
            break
        except DatabaseUnavailable as error:
            if backoff.tries == 0:
                log.warning("database.unavailable", reason=str(error))
            time.sleep(backoff.next())
    try:
        if settings.database.is_embedded:
            migrate.migrate(session)
        migrate.check(session)
    except OrchestratorError as error:
        log.error("schema.refused", reason=str(error))
        return EXIT_TEMPORARY
    finally:
        session.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

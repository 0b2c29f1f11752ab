"""The client's side: enqueue one e-mail, wait until the mail server has it, print how that went.

    python -m examples.email.send you@example.org "Your order 17" "It is on its way." --key order-17

The key makes the second call harmless: while the first e-mail waits or is being sent, and for as
long as it is in the dead letter queue, the same key gives the same task.
"""

from __future__ import annotations

import argparse
import sys

from examples.email.tasks import Message, Sent, send
from orchestrator import Client, Task, TaskFailed


def enqueue(client: Client, message: Message, key: str | None) -> Task[Sent]:
    """Enqueue a message; at most one live task has the key."""
    return client.enqueue(send, message, idempotency_key=key)


def main() -> int:
    """Send what the command line says; 1 when it was refused for good."""
    parser = argparse.ArgumentParser(description="Send one e-mail as a task.")
    parser.add_argument("to")
    parser.add_argument("subject")
    parser.add_argument("text", nargs="?", default="")
    parser.add_argument("--key", help="one live task per key")
    given = parser.parse_args()
    with Client.from_config() as client:
        task = enqueue(client, Message(given.to, given.subject, given.text), given.key)
        print(f"task {task.id}{' was there already' if task.existing else ''}")
        try:
            print(f"sent as {client.result(task).message_id}")
        except TaskFailed as failure:
            print(failure, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

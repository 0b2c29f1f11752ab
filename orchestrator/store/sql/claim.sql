select task_id, attempt, type, queue, priority, payload, headers, max_attempts, timeout_seconds,
       failures, crashes, losses, alone, created_at,
       waited_seconds
from {schema}.claim(%(node)s, %(slot)s, %(incarnation)s, %(pid)s, %(token)s,
                    %(queues)s, %(patterns)s, %(limit)s,
                    %(refused)s, %(started)s)

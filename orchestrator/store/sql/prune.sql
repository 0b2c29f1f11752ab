select deleted, last_id
from {schema}.prune(%(after)s, clock_timestamp() - make_interval(secs => %(keep)s), %(limit)s)

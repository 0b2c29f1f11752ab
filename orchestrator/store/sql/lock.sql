select pg_try_advisory_lock({schema}.lock_key(%(purpose)s), %(number)s)

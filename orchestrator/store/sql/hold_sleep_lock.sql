select pg_advisory_lock_shared({schema}.lock_key('sleep'), 0)

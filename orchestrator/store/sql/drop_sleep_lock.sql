select pg_advisory_unlock_shared({schema}.lock_key('sleep'), 0)

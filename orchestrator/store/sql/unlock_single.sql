select pg_advisory_unlock({schema}.lock_key('single'), 0)

update {schema}.leader
set term = term + 1, holder = %(holder)s, node = %(node)s,
    acquired_at = clock_timestamp(), renewed_at = clock_timestamp()
returning term

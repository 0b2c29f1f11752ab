update {schema}.leader set renewed_at = clock_timestamp()
where holder = %(holder)s and term = %(term)s
returning term

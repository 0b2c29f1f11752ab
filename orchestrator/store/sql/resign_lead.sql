update {schema}.leader set holder = null, node = null, renewed_at = null
where holder = %(holder)s

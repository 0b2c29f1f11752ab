update {schema}.type t set is_paused = %(paused)s
where {schema}.handles(%(patterns)s::text[], t.name)
returning t.name

update {schema}.queue q set is_paused = %(paused)s
where q.name = any (%(names)s::text[])
returning q.name

update {schema}.scheduled s set run_at = clock_timestamp()
where s.id = (
    select x.id
    from {schema}.scheduled x
    join {schema}.type t on t.id = x.type
    join {schema}.queue q on q.id = x.queue
    where {schema}.handles(%(patterns)s, t.name) and not t.is_paused and not q.is_paused
      and ('*' = any (%(queues)s) or q.name = any (%(queues)s))
    order by x.run_at, x.id
    limit 1
    for update of x skip locked)
returning s.id

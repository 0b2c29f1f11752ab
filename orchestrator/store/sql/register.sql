insert into {schema}.node
    (name, host, pid, run, version, lock_path, is_distributed, handlers, queues)
values (%(name)s, %(host)s, %(pid)s, %(run)s, %(version)s, %(lock_path)s, %(distributed)s,
        %(handlers)s, %(queues)s)
returning id

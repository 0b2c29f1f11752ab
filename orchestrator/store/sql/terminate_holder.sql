select l.pid, pg_terminate_backend(l.pid) as terminated
from pg_locks l
where l.locktype = 'advisory' and l.granted and l.objsubid = 2
  and l.database = (select oid from pg_database where datname = current_database())
  and l.classid = (({schema}.lock_key(%(purpose)s)::bigint + 4294967296) %% 4294967296)::oid
  and l.objid = %(number)s::oid
  and l.pid <> pg_backend_pid()

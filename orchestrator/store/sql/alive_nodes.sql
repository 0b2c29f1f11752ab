select id, name, host, pid, run, lock_path, is_distributed, beat_at,
       extract(epoch from clock_timestamp() - beat_at)::double precision as age_seconds
from {schema}.node where state = 'alive' order by id

select sum(greatest(reltuples, 0))::bigint
from pg_class where oid in (
    '{schema}.ready'::regclass, '{schema}.scheduled'::regclass, '{schema}.held'::regclass)

select task_id, answer
from {schema}.finish(%(ids)s::bigint[], %(tokens)s::bigint[], %(results)s::text[],
                     %(walls)s::double precision[], %(cpus)s::double precision[],
                     %(rss)s::bigint[])

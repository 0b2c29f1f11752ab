select extract(epoch from clock_timestamp() - renewed_at)::double precision
from {schema}.leader where holder is not null

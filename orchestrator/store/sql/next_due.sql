select extract(epoch from min(run_at) - clock_timestamp())::double precision
from {schema}.scheduled

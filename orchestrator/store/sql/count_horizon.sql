select pg_snapshot_xmax(pg_current_snapshot())::text::bigint as xmax,
       pg_snapshot_xmin(pg_current_snapshot())::text::bigint as xmin

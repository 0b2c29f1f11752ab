select {schema}.report_progress(%(ids)s::bigint[], %(tokens)s::bigint[],
                                %(dones)s::double precision[], %(totals)s::double precision[],
                                %(messages)s::text[])

select coalesce((select last_value from pg_sequences
                 where schemaname = %(schema)s and sequencename = 'task_id_seq'), 0) as up_to

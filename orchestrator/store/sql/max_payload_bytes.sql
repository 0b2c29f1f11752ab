select value from {schema}.setting where name = 'max_payload_bytes'

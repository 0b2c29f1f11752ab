update {schema}.node set state = 'left', workers = '[]' where id = %(node)s and state = 'alive'

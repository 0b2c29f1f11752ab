update {schema}.node set handlers = %(handlers)s where id = %(node)s

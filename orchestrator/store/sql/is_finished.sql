select exists (select from {schema}.outcome o
               where o.id = %(id)s and o.token = %(token)s and o.state = 'succeeded')

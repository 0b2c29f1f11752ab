select state from {schema}.tasks where id = %(id)s

select r.id, r.token
from {schema}.running r
where r.node = %(node)s and r.cancel_requested
order by r.id

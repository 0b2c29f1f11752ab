select r.task_id, r.attempt, n.name as node
from {schema}.rescue(%(max_losses)s, %(limit)s) r
left join {schema}.node n on n.id = r.node

select l.term, l.node as node_id, n.name as node, l.holder is not null as is_held,
       l.acquired_at, l.renewed_at,
       extract(epoch from clock_timestamp() - l.renewed_at)::double precision as renewed_seconds
from {schema}.leader l left join {schema}.node n on n.id = l.node

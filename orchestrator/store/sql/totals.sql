select t.name as type, s.enqueued
from {schema}.statistics s join {schema}.type t on t.id = s.type

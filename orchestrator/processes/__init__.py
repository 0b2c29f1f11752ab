"""The processes of a node: the supervisor and its kinds of children, one file each."""

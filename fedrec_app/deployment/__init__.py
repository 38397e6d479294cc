"""A SuperLink and its SuperNodes: certificates, keys, processes, supervision, and all of it on one machine."""

"""How long a model takes: timed, and kept in a table from which every allocation's latency is looked up."""

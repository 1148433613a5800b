"""The report: what the tables of counters say, for people and for programs."""

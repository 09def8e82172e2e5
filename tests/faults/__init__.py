"""Faults from outside: killed processes, damaged files, wrong arguments. Each script prints what it counted."""

"""Benchmarks: run by hand (`make bench`), never part of the timed tests. Each prints the table that the README quotes."""

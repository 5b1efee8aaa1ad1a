"""Benchmarks: run by hand (`make bench`), never part of the timed tests. They print what the README quotes."""

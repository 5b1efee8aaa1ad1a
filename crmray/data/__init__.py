"""From a source to as-of rows: ingest, clean, shard, check, examples, and the demo org."""

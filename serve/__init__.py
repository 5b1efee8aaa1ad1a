"""What you hit: the Ray Serve applications, one per task and one at the root. `from ray import serve` is Ray's own."""

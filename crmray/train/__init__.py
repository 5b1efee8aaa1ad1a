"""Training on a Ray cluster: the DeepSpeed engine, batches, the loop, search, fit."""

"""The commands of `crmray`, one module for those that belong together. Each has `add(commands)`; none imports Ray."""

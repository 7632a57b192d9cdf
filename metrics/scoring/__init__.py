"""From entries to scores: what each metric takes, the published rules, a run of all, and the bootstrap."""

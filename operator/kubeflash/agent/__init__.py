"""The agent: one a server. It observes, plans by pure functions, applies, reads back, and reports what was achieved."""

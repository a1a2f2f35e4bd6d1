"""The project's own benchmarks: plans, running them, and tables of their results."""

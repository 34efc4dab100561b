"""Generation, judges, tasks, and metrics with intervals."""

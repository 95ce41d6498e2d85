"""Evaluation of models: lm-eval's tasks, and suites of our own that need no network."""

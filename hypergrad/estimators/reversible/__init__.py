"""Training run backwards: the estimator, its optimiser and its arithmetic."""

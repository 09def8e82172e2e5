"""Parts that several estimators share: the pullback of a step, and walks along a training run."""

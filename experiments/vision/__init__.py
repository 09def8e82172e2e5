"""Images and text: hyperparameters of a residual network and of a transformer, learned while they train."""

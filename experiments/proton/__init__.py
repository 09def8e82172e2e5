"""The structure of the proton from deep-inelastic scattering: an ensemble and its hyperparameters."""

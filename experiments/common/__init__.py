"""Parts that the experiments share: data, reports, plots."""

"""Black-box searches over mixed, conditional spaces: ask, train, tell."""

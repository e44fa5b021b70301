"""Files, seeds and results on disk: tools that know nothing of robustness."""

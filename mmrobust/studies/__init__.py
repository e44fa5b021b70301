"""Studies that train or attack many detectors and put the results in one table."""

"""Files, errors, progress: what every room stands on."""

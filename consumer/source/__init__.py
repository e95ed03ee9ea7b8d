"""Where batches come from, one file a source."""

"""Pictures of text made from nothing but a corpus, fonts, a seed and an index: one file a way."""

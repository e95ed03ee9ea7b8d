"""What is measured on a model in training, one file a measure."""

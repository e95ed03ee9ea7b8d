"""Where reports go besides the JSONL file: TensorBoard, Prometheus, Weights & Biases."""

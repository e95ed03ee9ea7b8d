"""Captions and what else a vision-language model says of pictures, asked once and kept."""

"""Networks and mathematics on one device: no ranks, no groups.

Axis names in shapes: b samples, i image tokens of all samples, t text tokens of all samples, h heads, k head width,
d model width, e prompt-encoder width, c latent channels, y and x rows and columns.
"""

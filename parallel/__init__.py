"""How a model is spread over ranks. Megatron-core and Transformer Engine live here."""

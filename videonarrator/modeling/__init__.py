"""The model: visual tokens into a causal language model. Knows ids and tensors only."""

"""Data for training: the verifier's files, its answers, tokens, and its hidden states."""

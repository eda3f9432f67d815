"""A checkpoint and its verifier in a vLLM server of ours."""

"""The local model and embedder. Only this package imports llama.cpp."""

"""The loopback API: OpenAI's chat completions, responses, embeddings and models, behind a token."""

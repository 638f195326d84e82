"""The loopback API: OpenAI's chat completions, behind a token, for programs on this machine."""

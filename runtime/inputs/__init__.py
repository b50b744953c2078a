"""Pictures, videos and prompts, turned into what graphs take; tokens, turned into text."""

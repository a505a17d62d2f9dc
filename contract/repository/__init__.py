"""What is served from a model repository: `repository.toml`, and the rule that applies it."""

"""The admin port: changes what is served, by changing repository.toml."""

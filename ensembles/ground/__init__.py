"""The floor under both packages: rules about arguments, and memory asked for before it is taken."""

"""A light client: follows a chain by its headers and checks values by proofs, trusting no node."""

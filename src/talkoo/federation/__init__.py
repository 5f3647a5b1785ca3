"""A whole federation on one machine: real processes, real gRPC with mutual TLS, storage under one folder."""

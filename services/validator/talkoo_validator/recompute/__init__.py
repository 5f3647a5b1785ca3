"""The only part of the validator that loads torch: a child process that computes segments again."""

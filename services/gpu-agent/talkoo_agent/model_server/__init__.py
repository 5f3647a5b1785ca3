"""The child process that answers requests to one model version: `python -m talkoo_agent.model_server`."""

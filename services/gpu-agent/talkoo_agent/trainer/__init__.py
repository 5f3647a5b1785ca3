"""The child process that trains one rank: `python -m talkoo_agent.trainer`. Only this side imports torch."""

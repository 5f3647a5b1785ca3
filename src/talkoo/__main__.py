"""`python -m talkoo` is the command `talkoo`."""

from talkoo.cli import main

main()

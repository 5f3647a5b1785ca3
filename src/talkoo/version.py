"""The version of the distribution. Imported alone by `talkoo --version`, so that it stays instant."""

__version__ = "0.1.0"

"""Refuse, before the first node is built, what building would fail on: settings that cannot work, and files, packages
and ports that this machine lacks. No Hydra, no torch, no call to a server."""

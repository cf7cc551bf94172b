"""What building would fail on, looked at before the first node is built. No Hydra, no torch, no call to a server."""

"""The pretended accelerator, for tests of what runs on a GPU where there is none.

`device.cpp` registers torch's spare device type under the name `pretend`, with the CPU's memory and kernels. Like CUDA
it refuses an operator whose tensors are on two devices, and it reports where the host would wait for a GPU. Fixtures
of `conftest.py` compile it once per machine and make it available; `environment` does so for other processes. Kernels,
streams, speed and the rounding of a GPU are not pretended.
"""

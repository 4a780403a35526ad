"""Side-by-side measurements: `python -m benchmarks.grand`, `python -m benchmarks.conv`."""

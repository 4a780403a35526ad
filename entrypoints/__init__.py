"""Command-line entry points: parse, wire, loop."""

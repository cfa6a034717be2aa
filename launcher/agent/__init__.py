"""The process that does everything but own processes: it wires the packages together and runs the event loop."""

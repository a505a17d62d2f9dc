"""Lanes that are child processes: `convserve serve --workers N`.

wire        the frames between the front and a child, as pure functions
child       a child process: a loop that reads a batch, prepares and runs it, and writes the outcomes
launch      starts child processes
lane        one child as a lane of the batcher, and its health checks
factory     the children for a set of versions

The front process (HTTP, admission, JSON) owns all client connections. If a child is lost, the front
still answers its pictures.
"""

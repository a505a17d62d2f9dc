"""Lanes that are child processes: `convserve serve --workers N`.

wire        the frames between the front and a child, as pure functions
child       a child process: a loop that reads a batch, prepares it, runs it and writes what became of it
launch      starts child processes
lane        one child as a lane of the batcher, and the watch over its health
supervisor  the children for one set of versions: started, proven apart and renewed

The front process (HTTP, admission, JSON) owns every connection of a client, so that whatever happens
to a child, its pictures are answered.
"""

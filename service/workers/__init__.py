"""Inference in supervised child processes: `convserve serve --workers N`.

wire    the frames between the front and a worker, as pure functions
child   a worker process: lanes that answer frames
vitals  from what the front hears of a worker to what has to happen to it
member  one worker as the front sees it: what it owes, and how it ends
pool    the front's queue, its choice of a worker, and the replacement of workers
crew    the set of workers for a repository, started, switched and stopped as a whole

The front process (HTTP, admission, JSON) owns every connection of a client, so that whatever happens
to a worker, its pictures are answered.
"""

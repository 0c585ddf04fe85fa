"""The studio: a local page that plays a video while it is made, and lets a person change its words.

    cli       the command; loads a checkpoint, says where it listens
    app       the web side: routes, one WebSocket a viewer
    protocol  what a page may say, and how frames travel
    session   one address that people share: its takes, its log, its viewers
    take      one video: a stream of the sampler, and what came out of it
    game      the toy world's keys
    picture   the first picture that a person uploads
    worker    the one thread in which all sampling happens
    limits    every bound in one place

Whatever happens in a session is a message in its log, and a viewer is a place in that log: who comes late
reads from the start, who is slow lags behind, and nothing queues up for either.
"""

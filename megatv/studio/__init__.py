"""The studio: a local page that plays a video while it is made, and lets a person change its words.

    cli       the command and its options
    serve     loads a checkpoint, says where it listens
    app       the web side: routes, one WebSocket a viewer
    protocol  what a page may say, and how frames travel
    session   one address that people share: its takes, its log, its viewers
    log       what a viewer must hear, in order
    take      one video: a stream of the sampler, and what came out of it
    game      the toy world's keys
    uploads   the first picture that a person sends
    downloads takes as mp4 files and transcripts
    worker    the one thread in which all sampling happens
    limits    every bound in one place

Whatever happens in a session is a message in its log, and a viewer is a place in that log: who comes late
reads from the start, who is slow lags behind, and nothing queues up for either. Messages that a later one
makes needless leave the log, so that its size is that of the takes.
"""

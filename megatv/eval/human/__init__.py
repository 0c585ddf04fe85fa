"""What people say about two sets of videos: the studies of TV2TV sections 3.3 and 4.2.2, on our own page.

A study is one YAML (`study`) over folders or manifests of videos (`videos`), cut into blinded tasks (`tasks`)
with the paper's questions (`questions`). `server` shows them on a web page (`page/`) as `desk` says, to
people who have a token (`raters`); `assign` says who gets which, `answers` keeps what they say in SQLite
(`database`), and `report` makes figures of it with `stats`.
`python -m megatv.eval.human` is the command.
"""

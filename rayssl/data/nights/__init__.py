"""Generated nights of sleep: the stages of a night, and the sound of a sleeper and a room that goes with them.

`hypnogram` draws the stages, `sleeper` the constants of a subject, `breathing` every breath and movement of a night,
`room` what else is heard, `sound` has the carriers and adds the pieces up, and `night` puts it together.
"""

"""Other servers with the same model, images and client, to compare with.

The modules named after a server run in that server's own environment and import only `classifier` from this project
and, through it, `deit.preprocessing`.
"""

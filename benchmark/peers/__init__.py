"""Other servers with the same model, images and client, to compare with.

The modules named after a server run in an environment of that server's own and import nothing of this project but
`classifier` and, through it, `deit.preprocessing`.
"""

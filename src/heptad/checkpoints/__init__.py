"""Everything that a killed run needs to go on, to the bit, each checkpoint whole or absent.

`store` writes folders of files and finds the newest that is whole; `snapshot` says what is in them.
"""

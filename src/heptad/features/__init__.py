"""A frozen trunk costs one pass: its outputs are kept, keyed, verified, and used again.

The head is then trained on features by the same loop, with another model and another source.
"""

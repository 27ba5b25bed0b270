"""Where images come from: a catalog of named sets, folders of IDX files, pictures to predict.

Images leave here as they are stored, `uint8`; resizing and normalising are stage 2's.
"""

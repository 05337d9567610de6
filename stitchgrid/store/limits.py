"""Limits of files of a store: a store may come from anybody, and reading a small file could take all memory."""

KB, MB, GB = 2**10, 2**20, 2**30

LONGEST_FILE = 4 * GB  # of any kind
LONGEST_NAME_IN_TABLES = 1 * KB  # bytes of a name of a network, a layer or a matcher; jobs allow 255 letters
MOST = 10**15  # of anything that is counted, and the highest generation of rows
HIGHEST_GENERATION_TAKEN = MOST // 2  # highest generation taken from other stores, so that there are higher ones

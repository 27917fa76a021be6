# select: not written yet

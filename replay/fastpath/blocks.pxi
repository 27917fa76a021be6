# blocks: not written yet

# sink: not written yet

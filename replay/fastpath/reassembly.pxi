# reassembly: not written yet

"""The sketch kernels (CPU, CUDA, plain torch), the memory they add to, and the choice of one."""

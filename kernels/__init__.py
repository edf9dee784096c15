"""GLSL compute kernels: one primitive, one file; shared heads in lib/."""

// All kernels for one element type and one head dimension, as one module:
//   nvcc -cubin -gencode=arch=compute_90a,code=sm_90a -I. -DMEGATV_ELEMENT=__nv_bfloat16
//   -DMEGATV_HEAD_DIM=128
#include "forward.cuh"
#include "backward.cuh"
#include "backward_queries.cuh"
#include "rowwise.cuh"

// The part of CUDA's driver interface that launches kernels, with an emulated multiprocessor behind it.
// Compiled together with the kernels for one element type and head dimension.
#include "multiprocessor.h"

namespace {

template <class... Arguments, size_t... kIndex>
void call(void (*kernel)(Arguments...), void** parameters, std::index_sequence<kIndex...>) {
  kernel(*static_cast<std::remove_const_t<std::remove_reference_t<Arguments>>*>(parameters[kIndex])...);
}

template <class... Arguments>
std::function<void(void**)> callable(void (*kernel)(Arguments...)) {
  return [=](void** parameters) { call(kernel, parameters, std::index_sequence_for<Arguments...>{}); };
}

struct Kernel {
  std::function<void(void**)> run;
  const int* shape;
};
#define KERNEL(NAME)                        \
  {                                         \
    #NAME, { callable(NAME), NAME##_shape } \
  }
const std::map<std::string, Kernel> kernels{
    KERNEL(attention_forward),          KERNEL(attention_backward),   KERNEL(attention_backward_keys),
    KERNEL(attention_backward_queries), KERNEL(attention_statistics), KERNEL(attention_round)};

}  // namespace

extern "C" {

void emulator_seed(int seed) { megatv::host::random_bits.seed(seed); }

CUresult cuTensorMapEncodeTiled(CUtensorMap* to, CUtensorMapDataType type, cuuint32_t rank, void* base,
                                const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                                const cuuint32_t* steps, CUtensorMapInterleave interleave,
                                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
                                CUtensorMapFloatOOBfill fill) {
  const bool bf16 = std::is_same_v<megatv::Element, __nv_bfloat16>;
  const int bytes = type == CU_TENSOR_MAP_DATA_TYPE_FLOAT32 ? 4 : 2;
  if (bytes == 2 && type != (bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  megatv::TensorMap map{
      static_cast<char*>(base), {}, {bytes}, {}, bytes, swizzle == CU_TENSOR_MAP_SWIZZLE_128B};
  bool valid = rank == 3 && reinterpret_cast<uintptr_t>(base) % 16 == 0 &&
               reinterpret_cast<uintptr_t>(to) % 64 == 0 && interleave == CU_TENSOR_MAP_INTERLEAVE_NONE &&
               fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE && box[0] * bytes % 16 == 0 &&
               (!map.swizzle || box[0] * bytes <= 128);
  for (int axis = 0; axis < 3 && valid; ++axis) {
    map.sizes[axis] = sizes[axis], map.box[axis] = box[axis];
    if (axis) map.strides[axis] = strides[axis - 1];
    valid = steps[axis] == 1 && 1 <= box[axis] && box[axis] <= 256 && sizes[axis] > 0 &&
            (!axis || (strides[axis - 1] % 16 == 0 && strides[axis - 1] > 0));
  }
  if (!valid) return CUDA_ERROR_INVALID_VALUE;
  std::memcpy(to, &map, sizeof(map));
  return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice* device, int index) {
  *device = index;
  return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) {
  *context = nullptr;
  return CUDA_SUCCESS;
}
CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }

CUresult cuModuleLoadData(CUmodule* module, const void*) {
  *module = nullptr;
  return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction* function, CUmodule, const char* name) {
  const auto found = kernels.find(name);
  if (found == kernels.end()) return CUDA_ERROR_NOT_FOUND;
  *function = reinterpret_cast<CUfunction>(const_cast<Kernel*>(&found->second));
  return CUDA_SUCCESS;
}

CUresult cuModuleGetGlobal(CUdeviceptr* address, size_t*, CUmodule, const char* name) {
  const std::string text = name, kernel = text.substr(0, text.rfind("_shape"));
  const auto found = kernels.find(kernel);
  if (found == kernels.end() || kernel == text) return CUDA_ERROR_NOT_FOUND;
  *address = reinterpret_cast<CUdeviceptr>(found->second.shape);
  return CUDA_SUCCESS;
}

CUresult cuMemcpyDtoH(void* to, CUdeviceptr from, size_t bytes) {
  std::memcpy(to, reinterpret_cast<const void*>(from), bytes);
  return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute attribute, int value) {
  const bool valid = attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES && value <= 227 << 10;
  return valid ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGetErrorString(CUresult error, const char** text) {
  *text = error == CUDA_ERROR_LAUNCH_FAILED ? megatv::host::failure.c_str() : "refused by the emulator";
  return CUDA_SUCCESS;
}

CUresult cuLaunchKernel(CUfunction function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned,
                        unsigned, unsigned shared_bytes, CUstream, void** parameters, void**) {
  if (z != 1 || !x || !y || y > 65535 || threads % 128) return CUDA_ERROR_INVALID_VALUE;
  megatv::host::entry = [&] { reinterpret_cast<Kernel*>(function)->run(parameters); };
  try {
    for (unsigned j = 0; j < y; ++j) {
      for (unsigned i = 0; i < x; ++i) megatv::host::launch(threads, i, j, shared_bytes);
    }
  } catch (const std::runtime_error&) {
    return CUDA_ERROR_LAUNCH_FAILED;
  }
  return CUDA_SUCCESS;
}

}  // extern "C"
